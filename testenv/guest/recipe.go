package guest

// modules make virtio and the power button work on Debian's cloud kernel, in the order in which they have to be loaded:
// a module that comes before one that it needs is refused.
var modules = []string{
	"drivers/virtio/virtio_ring.ko",
	"drivers/virtio/virtio.ko",
	"drivers/virtio/virtio_pci_modern_dev.ko",
	"drivers/virtio/virtio_pci_legacy_dev.ko",
	"drivers/virtio/virtio_pci.ko",
	"drivers/block/virtio_blk.ko",
	"drivers/char/virtio_console.ko",
	"net/core/failover.ko",
	"drivers/net/net_failover.ko",
	"drivers/net/virtio_net.ko",
	"drivers/acpi/button.ko",
	"drivers/input/evdev.ko",
}

// initramfsInit loads the modules and goes on to the root file system. A root that does not come up ends in a restart
// after panic=5, and the console says why.
const initramfsInit = `#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
for m in $(/bin/busybox cat /modules.order); do /bin/busybox insmod /modules/$m; done
n=0
while [ ! -b /dev/vda2 ] && [ $n -lt 500 ]; do n=$((n+1)); /bin/busybox usleep 10000; done
/bin/busybox mount -t ext4 /dev/vda2 /root || exit 1
/bin/busybox umount /proc
exec /bin/busybox switch_root /root /sbin/init
`

// rootFiles are the scripts of the guest.
var rootFiles = map[string]string{
	"etc/inittab": `::sysinit:/etc/rc
ttyS0::respawn:-/bin/sh
::ctrlaltdel:/sbin/reboot
::shutdown:/etc/rc.stop
`,
	"etc/profile": "export PS1='# ' PATH=/bin:/sbin\n",
	"etc/rc": `#!/bin/sh
export PATH=/bin:/sbin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
[ -b /dev/vdb1 ] && mount -t ext4 /dev/vdb1 /data
boots=$(($(cat /var/boots 2>/dev/null || echo 0) + 1))
echo $boots >/var/boots
hostname guest
ip link set lo up
ip link set eth0 up 2>/dev/null
acpid -l /dev/null
for port in /dev/vport*; do
	[ -c $port ] && [ -x /sbin/qemu-ga ] && /sbin/qemu-ga -d -m virtio-serial -p $port -f /run/qemu-ga.pid -t /run
done
sync
[ -e /var/counter ] && setsid counter run >/dev/null 2>&1 </dev/null &
echo "GUEST-READY boots=$boots" >/dev/console
`,
	"etc/rc.stop": `#!/bin/sh
sync
umount /data
mount -o remount,ro /
`,
	"etc/acpi/PWRF/00000080": "#!/bin/sh\nexec /sbin/poweroff\n",
	"sbin/shutdown":          "#!/bin/sh\nexec /sbin/poweroff\n",
	"bin/counter": `#!/bin/sh
read_at() { dd if=/dev/$1 bs=512 skip=2040 count=1 2>/dev/null | sed -n 's/^HOLDFAST-SEQ 0*\([0-9]\)/\1/p'; }
write_at() { printf 'HOLDFAST-SEQ %012d\n' $1 | dd of=/dev/$2 bs=512 seek=2040 conv=notrunc,fsync,sync 2>/dev/null; }
case $1 in
run)
	echo $$ >/run/counter
	n=$(read_at vda)
	n=${n:-0}
	while [ -e /var/counter ]; do
		n=$((n + 1))
		write_at $n vda
		write_at $n vdb
	done
	;;
on)
	touch /var/counter
	setsid counter run >/dev/null 2>&1 </dev/null &
	;;
off)
	rm -f /var/counter
	while [ -d /proc/$(cat /run/counter 2>/dev/null || echo none) ]; do usleep 20000; done
	;;
show) echo "vda=$(read_at vda) vdb=$(read_at vdb)" ;;
*) echo "counter on|off|show" ;;
esac
`,
	"bin/note": `#!/bin/sh
echo "$*" >/var/note
echo "$*" >/data/note
sync
`,
	"bin/notes": `#!/bin/sh
echo "vda: $(cat /var/note 2>/dev/null)"
echo "vdb: $(cat /data/note 2>/dev/null)"
`,
}

// rootDirs exist in the root file system beside those of rootFiles.
var rootDirs = []string{"dev", "proc", "sys", "run", "data", "tmp", "var", "lib", "lib64", "root"}

// syslinuxConfig boots at once and without a menu.
const syslinuxConfig = `DEFAULT guest
PROMPT 0
TIMEOUT 0
LABEL guest
  KERNEL vmlinuz
  INITRD initrd
  APPEND console=ttyS0 quiet mitigations=off random.trust_cpu=on panic=5
`
