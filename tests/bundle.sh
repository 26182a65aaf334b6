# shellcheck shell=bash
# A busybox bundle for scripts: sourced by demo-inside and figures-inside. Needs $moat.

# bundle DIR: root filesystem and the config.json that `moat spec` writes, without a terminal.
bundle() {
  local at=$1 applet busybox
  busybox=$(command -v busybox) || { echo 'busybox is missing: install the package busybox-static' >&2; return 1; }
  mkdir -p "$at/rootfs/bin" "$at/rootfs/proc" "$at/rootfs/sys" "$at/rootfs/dev" "$at/rootfs/etc" "$at/rootfs/tmp"
  cp -L "$busybox" "$at/rootfs/bin/busybox"
  for applet in sh cat echo grep hostname ls nproc ps sleep true uname; do ln -s busybox "$at/rootfs/bin/$applet"; done
  (cd "$at" && "$moat" spec) || return 1
  sed -i 's/"terminal": *true/"terminal": false/' "$at/config.json"
}

# workload DIR WORD...: what the bundle runs. Words hold neither quotes nor backslashes nor `&` nor `|`.
workload() {
  local at=$1 list
  shift
  list=$(printf ', "%s"' "$@")
  sed -i -z "s|\"args\": *\[[^]]*\]|\"args\": [${list:2}]|" "$at/config.json"
}

# limits DIR MIB CPUS: memory limit, and a quota of whole CPUs.
limits() {
  local limit="\"memory\": {\"limit\": $(($2 << 20))}, \"cpu\": {\"quota\": $(($3 * 100000)), \"period\": 100000}"
  sed -i -z "s|\"resources\": *{|\"resources\": {$limit,|" "$1/config.json"
}

median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

# first_byte DIR ISOLATION: microseconds from before `moat run` is spawned until the workload's first byte.
first_byte() {
  local begin=${EPOCHREALTIME/./} end
  {
    IFS= read -r -N 1 _ || { echo "no output from the workload" >&2; return 1; }
    end=${EPOCHREALTIME/./}
    cat > /dev/null
  } < <("$moat" --root "$state" run --bundle "$1" --isolation "$2" "first-byte-$2-$$-$RANDOM" < /dev/null)
  echo $((end - begin))
}
