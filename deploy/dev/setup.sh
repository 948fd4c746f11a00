#!/bin/sh
# Everything `make` needs, on a fresh Debian machine with Python 3.11, gcc and make. Safe to run again: it does only what
# is missing. Usage: setup.sh [extra...], where extra is one of: torch routers bench clang etcd rdma rdma-vm
# Prints what it is about to download. Without the right to install system packages it names them and goes on without.
set -eu
cd "$(dirname "$0")/../.."
VENV=.venv
STAMP=.setup
mkdir -p "$STAMP" build
exec 9>build/.setup.lock  # two targets at once are one after the other here
if command -v flock >/dev/null; then flock 9; fi

say() { printf 'setup: %s\n' "$*"; }

apt_install() {  # apt_install REASON PACKAGE...
  reason=$1; shift
  missing=""
  for p in "$@"; do dpkg -s "$p" >/dev/null 2>&1 || missing="$missing $p"; done
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" = 0 ]; then SUDO=""; elif sudo -n true 2>/dev/null; then SUDO="sudo -n"; else SUDO=none; fi
  if [ "$SUDO" = none ] || ! command -v apt-get >/dev/null; then
    say "MISSING (no right to install):$missing  -- needed for $reason"
    printf '%s\n' "$reason:$missing" >>"$STAMP/missing"
    return 1
  fi
  say "apt-get install$missing (for $reason)"
  [ -e "$STAMP/apt-updated" ] || { $SUDO apt-get update -qq && touch "$STAMP/apt-updated"; }
  DEBIAN_FRONTEND=noninteractive $SUDO apt-get install -y -qq --no-install-recommends $missing >"$STAMP/apt.log" 2>&1 ||
    { say "apt-get failed:"; tail -5 "$STAMP/apt.log"; printf '%s\n' "$reason:$missing" >>"$STAMP/missing"; return 1; }
}

rm -f "$STAMP/missing"
command -v c++ >/dev/null || apt_install "the native build" g++ || exit 1
if [ ! -x $VENV/bin/python ]; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "Python 3.11 or newer is needed"; exit 1; }
  python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install "the virtual environment" python3-venv || exit 1
  # A venv of the system's Python needs its headers too.
  python3 -c 'import sysconfig, pathlib, sys; sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' ||
    apt_install "the native build" python3-dev || exit 1
  python3 -m venv $VENV
fi
PY=$VENV/bin/python

# The dependencies as pyproject.toml has them, so that there is one list.
want=$("$PY" - <<'PYEOF'
import hashlib, pathlib
print(hashlib.sha256(pathlib.Path("pyproject.toml").read_bytes()).hexdigest())
PYEOF
)
if [ "$(cat $STAMP/deps 2>/dev/null)" != "$want" ]; then
  say "installing Python dependencies into $VENV (about 145 MB to download, 480 MB on disk with the developers' tools)"
  "$PY" -m pip install -q --disable-pip-version-check --upgrade pip
  "$PY" - <<'PYEOF' >"$STAMP/requirements.txt"
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["dev"]))
PYEOF
  "$PY" -m pip install -q --disable-pip-version-check -r "$STAMP/requirements.txt"
  echo "$want" >$STAMP/deps
fi

# xxhash.h: Debian's package, or else the header inside the PyPI package's own source.
if ! echo '#include <xxhash.h>' | c++ -E -x c++ - >/dev/null 2>&1 && [ ! -e build/xxhash/xxhash.h ]; then
  apt_install "the checksum header" libxxhash-dev || {
    say "taking xxhash.h from the source of the xxhash package instead"
    "$PY" -m pip download -q --no-deps --no-binary xxhash -d build/xxhash-src xxhash
    mkdir -p build/xxhash && tar -xzf build/xxhash-src/xxhash-*.tar.gz -C build/xxhash-src
    cp build/xxhash-src/xxhash-*/deps/xxhash/xxhash.h build/xxhash/
  }
fi

# verbs.h, for the native half of RDMA; the library itself is looked for when it is used. Without the header all else builds.
echo '#include <infiniband/verbs.h>' | c++ -E -x c++ - >/dev/null 2>&1 || apt_install "RDMA in the native build" libibverbs-dev || true

# The source tree on the path, and the two commands, without a second build of the native part.
"$PY" - <<'PYEOF'
import pathlib, sysconfig, tomllib
root = pathlib.Path.cwd()
pathlib.Path(sysconfig.get_path("purelib"), "kvstore-source.pth").write_text(f"{root}\n")
for name, target in tomllib.load(open("pyproject.toml", "rb"))["project"]["scripts"].items():
    module, function = target.split(":")
    script = pathlib.Path(sysconfig.get_path("scripts"), name)
    script.write_text(f"#!{root}/.venv/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
PYEOF

# pyverbs reaches into libibverbs by symbols that are private to one release of rdma-core. So it cannot come from PyPI: it is
# the system's, and the venv gets a link to that one package, not to all of the system's Python packages.
link_pyverbs() {
  system=/usr/lib/python3/dist-packages/pyverbs
  link=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pyverbs
  if [ ! -d $system ]; then say "no $system: pyverbs stays out of $VENV"; return 1; fi
  if [ -e "$link" ] && [ ! -L "$link" ]; then
    say "$link is not a link of ours: pip uninstall pyverbs, then run this again"; return 1
  fi
  had=$(readlink "$link" || true)
  [ "$had" = $system ] || ln -sfn $system "$link"
  if why=$("$PY" -c 'import pyverbs.device' 2>&1); then
    [ "$had" = $system ] && say "pyverbs: $link was there, and imports" || say "pyverbs: linked $link -> $system, and it imports"
  else
    rm -f "$link"
    say "pyverbs: taken out of $VENV again, since it does not import (built for the system's Python, of libibverbs' release?):"
    say "  $(printf '%s\n' "$why" | tail -n 1)"; return 1
  fi
}

for extra in "$@"; do
  case $extra in
    rdma)
      # libibverbs-dev asks for libibverbs1 of exactly its own release: so all of them are of one.
      apt_install "RDMA (2 to 10 MB to download)" \
        rdma-core ibverbs-providers ibverbs-utils libibverbs-dev python3-pyverbs perftest || true
      link_pyverbs || true ;;
    rdma-vm)
      apt_install "the machine of tests/rdma (30 MB to download)" qemu-system-x86 busybox-static iproute2 || true ;;
    torch)
      "$PY" -c 'import torch, transformers' 2>/dev/null && continue
      say "installing torch 2.13.0 and transformers (about 200 MB for a CPU build, several GB for a CUDA build;"
      say "set TORCH_INDEX_URL to choose, for example https://download.pytorch.org/whl/cpu)"
      "$PY" -m pip install -q --disable-pip-version-check ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch==2.13.0
      "$PY" - <<'PYEOF' >"$STAMP/torch.txt"
import tomllib
print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["torch"]))
PYEOF
      "$PY" -m pip install -q --disable-pip-version-check -r "$STAMP/torch.txt" ;;
    routers)
      "$PY" -c 'import dynamo._core' 2>/dev/null && continue
      say "installing a router of another project, for the tests of KV events (75 MB to download, 240 MB on disk)"
      "$PY" -m pip install -q --disable-pip-version-check --group routers ||
        say "went on without it (its test is skipped)" ;;
    etcd)
      # Unpacked, not installed: Debian's package would start a service, and no right to install is needed.
      { command -v etcd || [ -x build/etcd/usr/bin/etcd ]; } >/dev/null && continue
      say "unpacking Debian's etcd-server (8 MB to download) into build/etcd, for the tests of membership"
      mkdir -p build/etcd-deb
      (cd build/etcd-deb && apt-get download -q etcd-server >../../$STAMP/etcd.log 2>&1) ||
        { [ "$(id -u)" = 0 ] && apt-get update -qq && (cd build/etcd-deb && apt-get download -q etcd-server); } >>$STAMP/etcd.log 2>&1 ||
        { say "went on without etcd (its tests are skipped): $(tail -n 1 $STAMP/etcd.log)"; continue; }
      dpkg -x build/etcd-deb/etcd-server_*.deb build/etcd && rm -r build/etcd-deb ;;
    bench) apt_install "the disk limit in benchmarks" fio || true ;;
    clang) apt_install "fuzzing" clang-14 libclang-rt-14-dev || true ;;
    *) say "unknown extra: $extra"; exit 2 ;;
  esac
done
[ ! -e "$STAMP/missing" ] || { say "went on without:"; sed 's/^/setup:   /' "$STAMP/missing"; }
