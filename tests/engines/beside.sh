# beside PYTHON FOLDER PACKAGE...: a virtual environment with these packages, and behind them everything that
# PYTHON's environment holds, so that torch is not downloaded again. Sourced by the scripts beside it.
beside() {
    local base=$1 environment=$2 packages
    shift 2
    if [[ ! -x $environment/bin/python ]]; then
        "$base" -m venv "$environment"
        packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        "$base" - >"$packages/beside.pth" <<'PYTHON'
import sysconfig

print(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})")
PYTHON
    fi
    "$environment/bin/python" -m pip install --quiet "$@"
}
