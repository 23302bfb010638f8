#!/bin/sh
# Runs in the image's root, once, after the packages and the files of `root/` are there.
set -eu

# Nobody waits for these on a machine that lives for a test; each costs a second or more of boot
# where the processor is emulated.
mask() {
  for unit in "$@"; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
  done
}
mask apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service \
  dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
  getty.target getty-static.service console-getty.service container-getty@.service \
  systemd-pstore.service systemd-hwdb-update.service systemd-binfmt.service \
  proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount \
  sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount \
  dev-hugepages.mount dev-mqueue.mount \
  systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-rfkill.socket \
  systemd-ask-password-console.path systemd-ask-password-wall.path systemd-journald-audit.socket \
  systemd-initctl.socket systemd-random-seed.service systemd-sysusers.service \
  systemd-remount-fs.service systemd-modules-load.service \
  modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service \
  modprobe@configfs.service modprobe@dm_mod.service modprobe@loop.service

# Generators run before everything else, and find nothing here: no crypt, no partitions, no getty.
mkdir -p /etc/systemd/system-generators
for generator in /lib/systemd/system-generators/*; do
  case ${generator##*/} in
    systemd-fstab-generator | systemd-run-generator) ;;
    *) ln -s /dev/null "/etc/systemd/system-generators/${generator##*/}" ;;
  esac
done

systemctl --quiet enable instance-network.service instance-grow-root.service ssh.service \
  google-guest-agent.service google-startup-scripts.service google-shutdown-scripts.service
systemctl --quiet set-default multi-user.target

# Every file is the package's own: nothing has to be brought up to date at the first boot.
touch /etc/.updated /var/.updated

# The initial RAM disk: busybox, `init` and the modules in the order in which they need each other.
# Not compressed, since an emulated processor unpacks slower than it is read.
make_initrd() {
  version=$(basename /lib/modules/*)
  initrd=$(mktemp -d)
  mkdir -p "$initrd/bin" "$initrd/dev" "$initrd/proc" "$initrd/new" "$initrd/modules"
  cp /bin/busybox "$initrd/bin/"
  mv /init "$initrd/init"
  number=100
  for module in virtio_pci virtio_scsi sd_mod crc32c_generic ext4 virtio_net button evdev; do
    for file in $(modprobe --set-version "$version" --show-depends "$module" | sed -n 's/^insmod //p'); do
      [ -z "$(find "$initrd/modules" -name "*-${file##*/}")" ] || continue
      number=$((number + 1))
      cp "$file" "$initrd/modules/$number-${file##*/}"
    done
  done
  rm -f /boot/initrd.img-*
  (cd "$initrd" && find . | cpio --quiet --create --format newc >"/boot/initrd.img-$version")
  rm -rf "$initrd"
}
make_initrd

# The guest agent makes new host keys on an instance's first boot, and sshd waits for it: an RSA
# key takes seconds of emulated processor.
sed -i 's/^host_key_types = .*/host_key_types = ed25519/' /etc/default/instance_configs.cfg
rm -f /etc/ssh/ssh_host_*

# What is an instance's own, or the machine's that built the image.
: >/etc/machine-id
rm -f /etc/fstab /etc/hostname /etc/resolv.conf /var/lib/dbus/machine-id /var/lib/systemd/random-seed
: >/etc/resolv.conf
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/99mmdebstrap \
  /var/lib/apt/lists/* /var/cache/apt/* /var/log/*.log /var/log/apt
