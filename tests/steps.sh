# shellcheck shell=bash
# Steps that are counted: sourced by tests/all, tests/inside and .ci/run.
#
#   step NAME COMMAND...   runs COMMAND, shows its output and adds what it counted
#   skip NAME REASON       counts a step that cannot be done here
#   finish                 prints `N passed, N failed, N skipped` as the last line; fails if something did
#
# A command that ends with such a line has counted for itself. Else what libtest and other harnesses counted on the
# way is added up; where nothing was counted the command is one step.

passed=0 failed=0 skipped=0 failures=()
steps_log=$(mktemp)
trap 'rm -f "$steps_log"' EXIT

step() {
  local name=$1 status counts p f s
  shift
  printf '\n== %s\n' "$name"
  "$@" 2>&1 | tee "$steps_log"
  status=${PIPESTATUS[0]}
  counts=$(tail -n 1 "$steps_log" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
  [ -n "$counts" ] || counts=$(awk '
    /^test result: / { p += $4; f += $6; s += $8; n = 1 }
    /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { p += $1; f += $3; s += $5; n = 1 }
    END { if (n) print p + 0, f + 0, s + 0 }' "$steps_log")
  if [ -n "$counts" ]; then
    read -r p f s <<< "$counts"
    [ "$status" = 0 ] || [ "$f" != 0 ] || f=1
  elif [ "$status" = 0 ]; then p=1 f=0 s=0
  else p=0 f=1 s=0; fi
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  [ "$f" = 0 ] || failures+=("$name (exit status $status)")
}

skip() {
  printf '\n== %s\nskipped %s: %s\n' "$1" "$1" "$2"
  skipped=$((skipped + 1))
}

finish() {
  echo
  local name
  for name in "${failures[@]}"; do echo "failed: $name"; done
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" = 0 ]
}
