package daemon

import (
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// duplicate makes a second descriptor of a socket's.
func duplicate(s families.Socket) (int, error) {
	desc, err := families.As[families.Descriptor](s)
	if err != nil {
		return model.NoFD, err
	}
	dup := model.NoFD
	err = desc.Control(func(fd int) (err error) {
		dup, err = duplicateFD(fd)
		return err
	})
	return dup, err
}

// duplicateFD duplicates a descriptor, close-on-exec. NoFD stays NoFD.
func duplicateFD(fd int) (int, error) {
	if fd < 0 {
		return model.NoFD, nil
	}
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return model.NoFD, errno
	}
	return int(n), nil
}

// duplicateSpec is spec with descriptors of its own.
func duplicateSpec(spec model.RelaySpec) (model.RelaySpec, error) {
	var err error
	if spec.FromFD, err = duplicateFD(spec.FromFD); err != nil {
		return model.RelaySpec{}, err
	}
	if spec.ToDirs, err = duplicateDirs(spec.ToDirs); err != nil {
		closeFD(spec.FromFD)
		return model.RelaySpec{}, err
	}
	return spec, nil
}

// duplicateNamespace is n with descriptors of its own; nil stays nil.
func duplicateNamespace(n *model.Namespace) (*model.Namespace, error) {
	if n == nil {
		return nil, nil
	}
	packet, err := duplicateFD(n.PacketFD)
	if err != nil {
		return nil, err
	}
	route, err := duplicateFD(n.RouteFD)
	if err != nil {
		closeFD(packet)
		return nil, err
	}
	return &model.Namespace{Name: n.Name, PacketFD: packet, RouteFD: route}, nil
}

func duplicateDirs(dirs []model.DirFD) ([]model.DirFD, error) {
	var out []model.DirFD
	for _, d := range dirs {
		fd, err := duplicateFD(d.FD)
		if err != nil {
			closeDirs(out)
			return nil, err
		}
		out = append(out, model.DirFD{FD: fd, Name: d.Name})
	}
	return out, nil
}

func closeDescriptors(spec model.RelaySpec) {
	closeFD(spec.FromFD)
	closeDirs(spec.ToDirs)
}

func closeDirs(dirs []model.DirFD) {
	for _, d := range dirs {
		closeFD(d.FD)
	}
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = syscall.Close(fd) // nothing was written through it
	}
}
