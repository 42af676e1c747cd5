#!/usr/bin/env bash
# Makes .venv with everything that the demo and the tests need. Called by `make env`; see README.md.
#
# The stamp file is written last, and its name holds a hash of what was asked for. So an install that was
# interrupted, an older set of pins, or a folder that was moved (its editable install would point to the
# old place) has no valid stamp, and is made again from nothing: pip cannot tell a package that was
# copied halfway from a whole one. pip keeps its downloads, so that the second time is short.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Two `make` at once: the second waits for the first instead of deleting its work.
if command -v flock >/dev/null; then
    exec 9>.venv.lock
    flock -n 9 || { echo "Another make is at work on .venv: waiting for it ..."; flock 9; }
fi

asked=$( (pwd; cat requirements/*.txt requirements/make_env.sh) | sha256sum | cut -c1-16)
stamp=.venv/.installed-$asked

# Looks for the packages without importing them: a second.
works() {
    .venv/bin/python -I - <<'END' 2>/dev/null
import importlib.util as u, sys
names = "torch torchvision detectron2 numpy PIL cv2 pycocotools fvcore crnas_d2 ruff mypy pytest"
sys.exit(any(u.find_spec(name) is None for name in names.split()))
END
}

if [ -e "$stamp" ] && works; then
    echo ".venv is up to date: nothing to install."
    exit 0
fi

python=
for name in python3.11 python3; do
    # A name on the PATH need not work (pyenv's shims).
    if "$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python=$name
        break
    fi
done
if [ -z "$python" ]; then
    echo "make env needs Python 3.11 as python3.11 or python3: numpy 1.23, which detectron2 0.5 needs," \
        "has no build for a later one. (With your own torch and detectron2, any Python >= 3.9 will do:" \
        "pip install -e .)" >&2
    exit 1
fi

if [ -e .venv ]; then
    echo "The .venv that is here is incomplete, broken, or of other pins: it is made again."
    rm -rf .venv
fi
echo "Installing torch, detectron2 0.5 and the rest into .venv: about 2 minutes, longer on a slow" \
    "network (a download of some 3 GB, 6 GB on the disk) ..."
pip() {
    # -qq: errors only.
    .venv/bin/python -m pip -qq --disable-pip-version-check --require-virtualenv "$@"
}
"$python" -m venv .venv
pip install -r requirements/build.txt
pip install -r requirements/base.txt -r requirements/dev.txt -c requirements/build.txt
pip install --use-pep517 --no-build-isolation --no-deps -r requirements/detectron2.txt
pip install --no-build-isolation --no-deps -e .
works
touch "$stamp"
echo "Installed into .venv (${SECONDS} s)."
