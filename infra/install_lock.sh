#!/usr/bin/env bash
# Installs lock files into a virtual environment, from wherever this machine's pip would take them.
#
#   infra/install_lock.sh VENV_PYTHON LOCK...     install (uv: about a minute; pip: about three)
#   infra/install_lock.sh --uv VENV_PYTHON ARG... run `uv ARG...` with pip's package sources (make lock uses it)
#
#   BALLAST_INSTALLER=uv|pip   use this one and no other; without it: uv, and pip when uv cannot be had or fails
#
# Which torch this gives: the locks ask for `torch==X.Y.Z` without a local version, and both installers prefer `X.Y.Z+cpu` where
# they see it. They see it through pip's own settings (pip.conf or PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL): a folder that holds the CPU
# wheel, or PyTorch's CPU package index. With nothing set, the public registry answers with the CUDA build (Linux, x86_64) and its
# nvidia-* packages: right on a GPU machine, several GB too many elsewhere.
set -euo pipefail

UV_VERSION=0.13.9

say() { printf 'install_lock: %s\n' "$*" >&2; }

# uv does not read pip's configuration: hand it over in uv's own variables, unless the caller has set those.
use_pip_sources() {
  local settings
  settings=$("$1" - <<'PY'
import ast, os, shlex, subprocess, sys

listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
found = dict(line.split("=", 1) for line in listing.splitlines() if "=" in line)


def setting(name):  # in the order of pip: environment, the [install] section, the [global] section
    for section in (":env:", "install", "global"):
        value = found.get(f"{section}.{name}")
        if value and ast.literal_eval(value).strip():
            return ast.literal_eval(value).split()
    return []


exports = {
    "UV_FIND_LINKS": ",".join(setting("find-links")),  # the one list that uv separates with commas
    "UV_DEFAULT_INDEX": " ".join(setting("index-url")),
    "UV_INDEX": " ".join(setting("extra-index-url")),
    # pip takes the best version of all indexes; uv would stop at the first index that knows the name.
    "UV_INDEX_STRATEGY": "unsafe-best-match" if setting("extra-index-url") else "",
    "UV_CONSTRAINT": " ".join(setting("constraint")),
    "UV_INSECURE_HOST": " ".join(setting("trusted-host")),
    "UV_HTTP_TIMEOUT": " ".join(setting("timeout") or setting("default-timeout")),
    "SSL_CERT_FILE": " ".join(setting("cert")),
    "ALL_PROXY": " ".join(setting("proxy")),
}
for name, value in exports.items():
    if value and name not in os.environ:
        print(f"export {name}={shlex.quote(value)}")
if (setting("no-index") or ["no"])[0].lower() in ("1", "true", "yes", "on"):
    print("uv_flags=(--no-index)")  # the one setting without a variable
PY
  ) || return
  uv_flags=()
  eval "$settings"
}

ensure_uv() {
  local have
  have=$("$1" -m uv --version 2>/dev/null | cut -d' ' -f2) || have=
  [ "$have" = "$UV_VERSION" ] || "$1" -m pip install -qq --disable-pip-version-check "uv==$UV_VERSION"
}

install_with_uv() {
  local python=$1; shift
  ensure_uv "$python" && use_pip_sources "$python" &&
    "$python" -m uv pip install --python "$python" --compile-bytecode ${uv_flags[@]+"${uv_flags[@]}"} "${@/#/--requirement=}"
}

install_with_pip() {
  local python=$1; shift
  say "installing with pip, a few minutes in silence"
  "$python" -m pip install -qq --disable-pip-version-check "${@/#/--requirement=}"
}

if [ "${1-}" = --uv ]; then
  python=$2; shift 2
  ensure_uv "$python"; use_pip_sources "$python"
  unset UV_CONSTRAINT  # pip's constraints are this machine's own affair, and uv would write their path into the lock
  exec "$python" -m uv "$@" ${uv_flags[@]+"${uv_flags[@]}"}
fi

[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
python=$1; shift
started=$SECONDS
case ${BALLAST_INSTALLER-} in
  uv) installer=uv; install_with_uv "$python" "$@" ;;
  pip) installer=pip; install_with_pip "$python" "$@" ;;
  "")
    installer=uv
    install_with_uv "$python" "$@" || {
      say "uv could not be had or failed (see above); falling back to plain pip."
      installer=pip; install_with_pip "$python" "$@"
    } ;;
  *) say "BALLAST_INSTALLER='$BALLAST_INSTALLER' is unknown: say uv or pip."; exit 2 ;;
esac
say "installed $* with $installer in $((SECONDS - started)) s"
