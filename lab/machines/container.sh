#!/bin/bash
# Runs one container until it is off. Started in mount and network namespaces of its own, so that
# whatever it mounts, and its interfaces, go away with the last of its processes, however they end.
#
# container.sh FOLDER NAMESPACE CGROUPS LAYERS NICS DISKS ARGUMENT…
#   FOLDER     the machine's; below it tree/ and lower/ are mounted on
#   NAMESPACE  name of the lab's network namespace, with the bridge `lan`
#   CGROUPS    directories to move to, separated by newlines
#   LAYERS     file system image, upper and work directory, separated by newlines
#   NICS       lines of: name in the container, name on the bridge, MAC, MTU
#   DISKS      lines of: device in the container, rw or ro, file
#   ARGUMENT…  systemd-nspawn's
set -euo pipefail

readonly FOLDER=$1 NAMESPACE=$2 CGROUPS=$3 LAYERS=$4 NICS=$5 DISKS=$6
shift 6
readonly REBOOT=133 # what nspawn --keep-unit says when the container rebooted

limited="" # the cgroup of version 2 whose pids are handed down, if they are

# The container has its own cgroups: no other cgroup, such as a session's, may count it.
enter_cgroups() {
  local directory
  while read -r directory; do
    [[ -z $directory ]] || echo "$$" >"$directory/cgroup.procs"
  done <<<"$CGROUPS"
  # The last is version 2's. Beside version 1 nspawn hands no controllers down; pids are, here.
  directory=${CGROUPS##*$'\n'}
  if [[ $CGROUPS == *$'\n'* && -e $directory/cgroup.subtree_control && -e $directory/pids.max ]]; then
    limited=$directory
    mkdir -p "$limited/launcher"
    echo "$$" >"$limited/launcher/cgroup.procs"
  fi
}

# No process may be in a cgroup that hands a controller down: this script is in one of its own, and
# the container, in nspawn's `payload`, stands still until nspawn has gone to its `supervisor`.
hand_pids_down() {
  local end=$((SECONDS + 20))
  until [[ -n $(<"$limited/payload/cgroup.procs") && -z $(<"$limited/cgroup.procs") ]]; do
    if ((SECONDS > end)) || ! kill -0 "$$"; then
      echo "no pids controller for this container: nspawn has not left $limited" >&2
      break
    fi
    sleep 0.01
  done
  echo +pids >"$limited/cgroup.subtree_control" || true
  # Where its systemd looks for the machine's limit, of which a unit may have 15 %.
  cat "$limited/pids.max" >"$limited/payload/pids.max" || true
  echo 0 >"$limited/payload/cgroup.freeze"
}

# Remains of an earlier boot; its last processes may still be ending.
clear_cgroups() {
  local end=$((SECONDS + 5))
  until find "$limited" -depth -mindepth 1 -type d ! -name launcher -exec rmdir {} + &&
    echo -pids >"$limited/cgroup.subtree_control"; do
    if ((SECONDS > end)); then
      echo "processes of the boot before are left in $limited" >&2
      return 1
    fi
    sleep 0.05
  done
}

nspawn() {
  if [[ -z $limited ]]; then
    systemd-nspawn "$@"
    return
  fi
  local each ended=0
  clear_cgroups || return 1
  mkdir "$limited/payload"
  echo 1 >"$limited/payload/cgroup.freeze"
  hand_pids_down &
  (echo "$BASHPID" >"$limited/cgroup.procs" && exec systemd-nspawn "$@") || ended=$?
  # Usually it has ended, and its number is another process's.
  for each in $(jobs -pr); do kill "$each"; done
  return "$ended"
}

mount_root() {
  local image upper work layers
  { read -r image && read -r upper && read -r work; } <<<"$LAYERS"
  mount -o ro,loop,noload "$image" "$FOLDER/lower"
  # volatile: otherwise each power-off waits until the machine's whole file system is on its disk.
  # That would protect from a crash of this machine, which ends the container anyway; volatile leaves
  # a mark, which is in the way of the next start.
  rm -rf "$work"/*/incompat
  layers="lowerdir=$FOLDER/lower,upperdir=$upper,workdir=$work"
  mount -t overlay overlay -o "$layers,volatile" "$FOLDER/tree"
}

# The kernel detaches a loop device once no process has it open: this script keeps it open while it
# lives.
binds=()
open_disks() {
  local device mode file loop held options
  while read -r device mode file; do
    [[ -n $device ]] || continue
    options=()
    [[ $mode == rw ]] || options=(--read-only)
    loop=$(losetup --find --show "${options[@]}" "$file")
    # shellcheck disable=SC2034 # held is that: the number is bash's affair
    exec {held}<"$loop"
    losetup --detach "$loop"
    binds+=("--bind=$loop:$device")
  done <<<"$DISKS"
}

# nspawn looks its interfaces up in /sys, which shows those of the namespace that mounted it.
mount_sys() {
  mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$FOLDER/tree"
  mount --rbind /sys/fs/cgroup "$FOLDER/tree/fs/cgroup"
  mount --move "$FOLDER/tree" /sys
}

interfaces=()
plug_nics() {
  local name peer mac mtu
  interfaces=()
  while read -r name peer mac mtu; do
    [[ -n $name ]] || continue
    ip -n "$NAMESPACE" link delete "$peer" 2>/dev/null || true
    ip link add "$name" address "$mac" mtu "$mtu" type veth peer name "$peer" netns "$NAMESPACE"
    ip -n "$NAMESPACE" link set "$peer" mtu "$mtu" master lan up
    interfaces+=("--network-interface=$name")
  done <<<"$NICS"
}

echo "$$" >"$FOLDER/pid.part"
mv "$FOLDER/pid.part" "$FOLDER/pid"
enter_cgroups
mkdir -p "$FOLDER/tree" "$FOLDER/lower"
mount_sys
mount_root
open_disks
status=$REBOOT
while ((status == REBOOT)); do
  plug_nics
  status=0
  nspawn "${binds[@]}" "${interfaces[@]}" "$@" || status=$?
done
exit "$status"
