# Becomes process 1 of a machine. Runs in fresh mount, pid, network, ipc, uts and
# cgroup namespaces, in a cgroup of its own, as process 1.
# $1: the folder to build the root on; $2: the tree laid over it; $3: unit path.
set -eu
base=$1 tree=$2

mount --make-rprivate /
# An upper layer may not lie on an overlay itself (as in a container): tmpfs.
mount -t tmpfs -o mode=0755 tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
root=$base/root
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$root"

# What the host enabled, configured, mounted or keeps at run time is not part of
# the machine. Removing it from the overlay removes it from the machine alone.
for gone in /etc/systemd/system /usr/local/lib/systemd/system \
	/etc/sockd /usr/lib/sockd /var/lib/sockd /var/log/journal; do
	rm -rf "${root:?}$gone"
done
mkdir -p "$root/etc/systemd/system"
cp -a --no-preserve=ownership "$tree/." "$root/"
chmod 0755 "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
mkdir -p "$root/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"

mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/full" c 1 7
mknod -m 666 "$root/dev/random" c 1 8
mknod -m 666 "$root/dev/urandom" c 1 9
mknod -m 666 "$root/dev/tty" c 5 0
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

# Of the stock units only the journal's. The targets that units are ordered after
# by default are there, and empty: nothing of the host's boot is started.
units=$root/run/systemd/system
mkdir -p "$units"
cp "$root"/usr/lib/systemd/system/systemd-journald.service \
	"$root"/usr/lib/systemd/system/systemd-journald.socket \
	"$root"/usr/lib/systemd/system/systemd-journald-dev-log.socket "$units/"
for target in sysinit basic sockets multi-user shutdown network nss-lookup; do
	printf '[Unit]\nDefaultDependencies=no\n' >"$units/$target.target"
done
cat >"$units/machine.target" <<'UNIT'
[Unit]
DefaultDependencies=no
Wants=systemd-journald.service
UNIT
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
ip link set lo up

mkdir "$root/dev/old" # a place that is in every machine, and none of the overlay's
cd "$root"
pivot_root . dev/old
umount -l /dev/old
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	container=sockd-test SYSTEMD_UNIT_PATH="$3" \
	/usr/lib/systemd/systemd --system --unit=machine.target --show-status=no
