#!/bin/sh
# Compile the extension with sanitizers and run its tests:
#
#     tools/sanitize.sh                 # address and undefined behaviour, then threads
#     tools/sanitize.sh thread          # one of them: "address;undefined" or "thread"
#
# The package is copied beside the instrumented extension, so that the installed one stays as it is.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
root=$PWD

# The thread sanitizer does not support new threads in a forked child.
no_fork="--deselect tests/ext/test_lattice.py::test_a_forked_child_computes_with_threads_of_its_own"

check() {
    kind=$1
    runtime=$2
    work=$root/build/sanitize-$(echo "$kind" | tr ';' '-')
    mkdir -p "$work"
    cmake -S . -B "$work/cmake" -G Ninja -DCMAKE_BUILD_TYPE=None -DCRFASRNN_SANITIZE="$kind" -DCRFASRNN_CUDA=off \
        -DPython_EXECUTABLE="$(command -v "$python")" -Dnanobind_DIR="$("$python" -m nanobind --cmake_dir)" >/dev/null
    cmake --build "$work/cmake" --target _lattice --parallel 1
    rm -rf "$work/src"
    cp -r src "$work/src"
    rm -f "$work"/src/napari_crfasrnn/_ext/*.so
    cp "$work"/cmake/_lattice.*.so "$work/src/napari_crfasrnn/_ext/"
    echo "== tests with $kind =="
    # Python itself and torch are not instrumented: their leaks are not ours to report. The C++ runtime is
    # loaded first, or the sanitizer would not find where exceptions are thrown.
    # Everything takes ten times as long: no test has a time limit.
    preload="$(c++ -print-file-name="$runtime") $(c++ -print-file-name=libstdc++.so)"
    PYTHONPATH="$work/src" LD_PRELOAD="$preload" OMP_NUM_THREADS=1 \
        ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0 \
        UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
        TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1 \
        "$python" -m pytest -q --timeout=0 --capture=sys -p no:cacheprovider tests/ext/test_lattice.py \
        tests/ext/test_lattice_build.py tests/core/test_crf.py tests/core/test_mean_field.py \
        --deselect tests/ext/test_lattice.py::test_committed_stub_is_current $3
}

case ${1:-all} in
    all)
        check "address;undefined" libasan.so ""
        check thread libtsan.so "$no_fork"
        ;;
    thread) check thread libtsan.so "$no_fork" ;;
    *) check "$1" libasan.so "" ;;
esac
