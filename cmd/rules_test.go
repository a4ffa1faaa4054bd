// Package cmd_test holds the rules of the whole tree: which package may import
// which, and what every package must say of itself. A rule stands in a table with
// its reason, so that whoever breaks it learns why from the failure.
package cmd_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/sockd/sockd"

// pkg is one folder of Go files: its imports, tests apart, and its package comment.
type pkg struct {
	dir         string            // from the root, "" for the root itself
	imports     map[string]string // import path → file
	testImports map[string]string
	doc         string
}

// tree parses the imports and package comments of every Go file below the root.
func tree(t *testing.T) map[string]*pkg {
	t.Helper()
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	pkgs := map[string]*pkg{}
	err = filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(file, ".go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		dir := path.Dir(filepath.ToSlash(rel))
		p := pkgs[dir]
		if p == nil {
			p = &pkg{dir: dir, imports: map[string]string{}, testImports: map[string]string{}}
			pkgs[dir] = p
		}
		p.add(f, rel)
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, len(pkgs), 10, "the walk found the tree")
	return pkgs
}

func (p *pkg) add(f *ast.File, file string) {
	test := strings.HasSuffix(file, "_test.go")
	if f.Doc != nil && !test {
		p.doc += f.Doc.Text()
	}
	for _, i := range f.Imports {
		name := strings.Trim(i.Path.Value, `"`)
		if test {
			p.testImports[name] = file
		} else {
			p.imports[name] = file
		}
	}
}

// An arrow rule: packages that match from import nothing that matches no, unless
// they match except.
type arrow struct {
	name   string
	from   string
	no     string
	except string
	why    string
}

var arrows = []arrow{
	{"daemon does not know ctl", `^daemon(/|$)`, `^` + module + `/(ctl|cmd)(/|$)`, ``,
		"ctl says what it needs (Backend), daemon satisfies it, cmd/sockd introduces them; so either can be read, tested and replaced alone"},
	{"ctl does not know daemon", `^ctl(/|$)`, `^` + module + `/(daemon|systemd|cmd)(/|$)`, ``,
		"sockd-ctl links ctl: through it the daemon's engines would end up in the client"},
	{"ctl knows no family", `^ctl(/|$)`, `^` + module + `/families/(all|ksock|inet|inet6|local|ipx|packet|packet/ring|packet/inject|packet/filter|familytest)$`, ``,
		"a family is added without touching the protocol; ctl speaks of families only as the contract does"},
	{"filter stands alone", `^families/packet/filter(/|$)`, `^` + module + `/|^github\.com/`, `^` + module + `/families/packet/filter/(syntax|internal/code)$`,
		"others may import the compiler without the rest of sockd, and the client does"},
	{"tap is a client and little more", `^ctl/tap$`, `^` + module + `/|^[^/]*\.[^/]*/`, `^` + module + `/(ctl|ctl/borrow|families/model|families/packet/(pcapng|shm))$`,
		"other people's programs link it"},
	{"sockd-ctl is only the client", `^cmd/sockd-ctl$`, `^` + module + `/(daemon|systemd|families/(all|ksock|inet|inet6|local|ipx|packet|packet/ring))(/|$)`, `^` + module + `/families/packet/(pcapng|filter)$`,
		"the client runs with its caller's rights and must stay small; what it does, it asks the daemon for"},
	{"no family knows another", `^families/(inet|inet6|local|packet|ipx)$`, `^` + module + `/families/(inet|inet6|local|packet|ipx|all)$`, ``,
		"what families share lives in ksock: else one cannot be left out of a build"},
	{"families know nobody above them", `^families(/|$)`, `^` + module + `/(daemon|ctl|systemd|cmd)(/|$)`, ``,
		"the contract is the lowest layer; an import upwards would be a cycle sooner or later"},
	{"systemd knows nothing of ours", `^systemd$`, `^` + module + `/`, ``,
		"it is the host's service manager and nothing else; it can be read alone"},
	{"the contract is standard library only", `^families$`, `^[^/]*\.[^/]*/`, ``,
		"everything imports the contract: what it drags in, everything drags in"},
	{"the shared words are plain", `^families/model$`, `^[^/]*\.[^/]*/`, `^` + module + `/families$`,
		"daemon and ctl share words here, not code or dependencies"},
	{"only the list and tests name all families", `^(daemon|ctl|systemd|families)(/|$)`, `^` + module + `/families/all$`, ``,
		"cmd/sockd decides which families a daemon has; the rest gets a Set"},
	{"familytest is for tests", `.`, `^` + module + `/families/familytest$`, ``,
		"it makes network namespaces and counts descriptors: nothing that a daemon does"},
	{"ksock is for families and engines", `^`, `^` + module + `/families/ksock$`, ``,
		"the only place with socket system calls; see ksockUsers for who may and why"},
	{"x/sys/unix stays where system calls are made", `^`, `^golang.org/x/sys/unix$`, ``,
		"see unixUsers for who may and why"},
	{"cobra and gopacket are the command line's", `^(daemon|ctl|systemd|families)(/|$)`, `^github.com/(spf13|gopacket)/`, ``,
		"the daemon parses no packets for display and no command lines: less in the process that holds the sockets"},
	{"testify is for tests", `^(daemon|ctl|systemd|cmd)(/|$)`, `^github.com/stretchr/`, ``,
		"nothing that ships links a test library"},
}

// Who may import ksock and x/sys/unix, and why.
var (
	ksockUsers = map[string]string{
		"families/inet":         "its sockets are kernel sockets",
		"families/inet6":        "its sockets are kernel sockets",
		"families/local":        "its sockets are kernel sockets",
		"families/packet":       "its sockets are kernel sockets",
		"families/packet/owner": "asks sock_diag who holds a socket",
		"daemon/relay":          "dials pinned paths as the owner, asks the kernel's queues",
	}
	unixUsers = map[string]string{
		"families/ksock":         "the socket system calls",
		"families/packet":        "sockaddr_ll and packet(7) constants",
		"families/packet/ring":   "PACKET_RX_RING, mmap",
		"families/packet/inject": "sendmmsg on packet sockets, nanosleep",
		"families/packet/links":  "takes over rtnetlink sockets of other namespaces, which mdlayher/netlink cannot",
		"families/packet/shm":    "memfd_create, seals, mmap",
		"families/packet/files":  "pwrite, O_DIRECT and ftruncate on the files that callers hand over",
		"daemon/park":            "SCM_RIGHTS and SO_PEEK_OFF on pairs that belong to no family",
		"families/familytest":    "network namespaces",
		"systemd":                "descriptors that systemd hands over, notify",
		"systemd/systemdtest":    "boots a systemd in namespaces",
		"ctl":                    "errno names (errno.go), how much is unread in a pipe (outcome.go)",
		"ctl/varlink":            "SCM_RIGHTS, SO_PEERCRED",
		"ctl/borrow":             "what the client does with its own rights",
	}
)

func TestImportArrows(t *testing.T) {
	pkgs := tree(t)
	for _, a := range arrows {
		t.Run(a.name, func(t *testing.T) {
			from, no := regexp.MustCompile(a.from), regexp.MustCompile(a.no)
			for dir, p := range pkgs {
				if !from.MatchString(dir) || allowed(a, dir) {
					continue
				}
				for name, file := range p.imports {
					if !no.MatchString(name) || a.except != "" && regexp.MustCompile(a.except).MatchString(name) {
						continue
					}
					t.Errorf("%s imports %s\n\tbecause: %s", file, name, a.why)
				}
			}
		})
	}
}

// allowed looks a package up in the list that belongs to the rule.
func allowed(a arrow, dir string) bool {
	switch {
	case strings.HasSuffix(a.no, "/families/ksock$"):
		return ksockUsers[dir] != ""
	case strings.HasSuffix(a.no, "/sys/unix$"):
		return unixUsers[dir] != ""
	case strings.HasSuffix(a.no, "/familytest$"):
		return strings.HasSuffix(dir, "test")
	}
	return false
}

// A list of exceptions that nobody uses any more is a rule that says too little.
func TestExceptionsAreUsed(t *testing.T) {
	pkgs := tree(t)
	for list, want := range map[string]map[string]string{module + "/families/ksock": ksockUsers, "golang.org/x/sys/unix": unixUsers} {
		for dir, why := range want {
			p := pkgs[dir]
			if p == nil {
				t.Errorf("%s is listed for %s (%s), and is not there", dir, list, why)
				continue
			}
			_, used := p.imports[list]
			_, tested := p.testImports[list]
			if !used && !tested {
				t.Errorf("%s is listed for %s (%s), and does not import it", dir, list, why)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for dir, p := range tree(t) {
		onlyTests := len(p.imports) == 0 && len(p.testImports) > 0
		if onlyTests {
			continue
		}
		if len(strings.TrimSpace(p.doc)) < 40 {
			t.Errorf("%s has no package comment that says what it is for, who calls it and when not to", dir)
		}
	}
}

// What a file of the tree must never name: the machines that built it.
func TestNothingNamesAMachine(t *testing.T) {
	foreign := regexp.MustCompile(`/` + `work/|/` + `root/|proxy\.` + `golang\.org|deb\.` + `debian\.org|/home/[a-z]+/`)
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	err = filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "bin"):
			return filepath.SkipDir
		case d.IsDir() || !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if m := foreign.Find(b); m != nil {
			t.Errorf("%s names %q", file, m)
		}
		return nil
	})
	require.NoError(t, err)
}
