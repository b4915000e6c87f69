#!/usr/bin/env bash
# First command of the images: shows git and DVC where code and data come from, then becomes the command it is given.
#
#   BALLAST_GIT_URL     where the commits of other machines are fetched from (git's `origin`)
#   BALLAST_DVC_REMOTE  the DVC remote, e.g. s3://dvc
#
# Both are optional: the servers need neither. Credentials stay in the environment (AWS_*, a mounted git credential file): the
# addresses are written into files of this container, and one that holds a password is refused.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

for name in BALLAST_GIT_URL BALLAST_DVC_REMOTE; do
  if [[ ${!name-} =~ ://[^/@]+:[^/@]+@ ]]; then
    echo "error: $name holds a password; give it by a credential file or AWS_* variables instead" >&2
    exit 2
  fi
done
if [ -n "${BALLAST_GIT_URL-}" ]; then
  git remote remove origin 2>/dev/null || true
  git remote add origin "$BALLAST_GIT_URL"
fi
if [ -n "${BALLAST_DVC_REMOTE-}" ]; then
  dvc remote add --quiet --local --force --default storage "$BALLAST_DVC_REMOTE"
fi
# Where the checkout is a volume, a newer image does not change it (docs/containers.md, "Upgrade").
if [ -r ../ballast.commit ] && ! git merge-base --is-ancestor "$(cat ../ballast.commit)" HEAD 2>/dev/null; then
  echo "warning: this checkout lacks the commit of its image, $(cat ../ballast.commit); it is at $(git rev-parse HEAD)" >&2
fi
exec "$@"
