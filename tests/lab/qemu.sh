# shellcheck shell=bash
# The QEMU machine of the lab: sourced by `run`. Sets the array `qemu`.

QEMU_MINIMUM=8.2 # older ones lock up in nested guests

# The CPU: AMD with SVM and nested paging, less the features whose emulation is missing or costly.
LAB_CPU=EPYC,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec,-perfctr-core,-clzero,-ibpb,-xsaves,+svm,+npt

require_qemu() {
  local remedy="install qemu-system-x86 $QEMU_MINIMUM or newer (Debian 12: from the suite bookworm-backports; tests/setup does it)"
  local version
  version=$(qemu-system-x86_64 --version 2>/dev/null | sed -n '1s/.*version \([0-9][0-9.]*\).*/\1/p')
  [ -n "$version" ] || fail "qemu-system-x86_64 is missing: $remedy" 125
  [ "$(printf '%s\n' "$QEMU_MINIMUM" "$version" | sort -V | head -n 1)" = "$QEMU_MINIMUM" ] ||
    fail "QEMU $version is too old: $remedy" 125
}

# qemu_args DIR KERNEL INITRD CPUS MIB APPEND [WRITABLE...]
qemu_args() {
  local dir=$1 kernel=$2 initrd=$3 cpus=$4 mem=$5 append=$6
  shift 6
  # The TSC under TCG is the host's. Calibrating it by the PIT is a coin toss there, so it is told.
  local khz
  khz=$(awk '/^bogomips/ { printf "%d", $3 * 500; exit }' /proc/cpuinfo)
  qemu=(
    -M microvm,acpi=off,rtc=on,isa-serial=on -cpu "$LAB_CPU" -accel "tcg,thread=${MOAT_LAB_TCG:-single},tb-size=256"
    -m "$mem" -smp "$cpus" -nodefaults -no-user-config -display none -no-reboot -pidfile "$dir/qemu.pid"
    -kernel "$kernel" -initrd "$initrd"
    -append "console=ttyS0 quiet panic=-1 reboot=t tsc=reliable tsc_early_khz=${khz:-1000000} mitigations=off no_timer_check cryptomgr.notests lab=$dir $append"
    -serial "file:$dir/console"
    -device virtio-serial-device,max_ports=8
    -chardev "file,id=in,path=/dev/null,input-path=$dir/in" -device virtserialport,chardev=in,name=in
    -chardev "file,id=out,path=$dir/out" -device virtserialport,chardev=out,name=out
    -chardev "file,id=err,path=$dir/err" -device virtserialport,chardev=err,name=err
    -chardev "file,id=status,path=$dir/status" -device virtserialport,chardev=status,name=status
    -device virtio-rng-device
    -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap
    -device virtio-9p-device,fsdev=root,mount_tag=root
  )
  local n=0 folder
  for folder in "$@"; do
    qemu+=(-fsdev "local,id=w$n,path=${folder//,/,,},security_model=none,multidevs=remap"
      -device "virtio-9p-device,fsdev=w$n,mount_tag=w$n")
    n=$((n + 1))
  done
}
