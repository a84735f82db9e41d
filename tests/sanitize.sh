#!/usr/bin/env bash
# The compiled module under sanitizers: memory and undefined behaviour, or data races.
#
#   tests/sanitize.sh address            AddressSanitizer, UndefinedBehaviorSanitizer: build, then every piece below
#   tests/sanitize.sh thread             ThreadSanitizer: the pool and concurrent callers
#   tests/sanitize.sh address PIECE ...  those pieces alone, on the last build if there is one
#
# Nothing is suppressed: alignment, signed overflow, shifts, float-to-integer conversions count too. Needs gcc with
# libasan, libubsan and libtsan, the build requirements (Cython, NumPy, setuptools) and the test extra in the
# environment of PYTHON (python3 by default), whose own installation of fastxent is not touched.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} kind=${1:?address or thread}
shift

# Tests that say much to a sanitizer: every kernel, layout, option and entry point; threads, forks; faults. Where all
# instruction sets would take too long these are the baseline and, as @, the best that this machine has.
declare -A pieces
case $kind in
    address)
        sanitizers=address,undefined,float-cast-overflow library=asan
        order=(faults arguments activations elements scoring linear random parity streams threads forks)
        pieces=(
            [faults]="tests/test_index_fuzz.py tests/test_edges.py -k not(numba-or-32_elements)"
            [arguments]="tests/test_arguments.py tests/test_intake.py tests/test_articles.py tests/test_runtime.py -k not(torch-or-jax)"
            [activations]="tests/test_parity_activations.py -k (float16-or-float32)-and-(@-or-baseline)-and-not-upstream"
            [elements]="tests/test_elementwise.py tests/test_divergence.py -k not-numba"
            [scoring]="tests/test_statistics.py tests/test_evaluation.py -k not-numba"
            [linear]="tests/test_linear.py tests/test_linear_work.py -k not(numba-or-workspace)"
            [random]="tests/test_parity.py -k of_random_products-and-(@-or-baseline)"
            [parity]="tests/test_parity.py -k (layout_cases-or-special_rows)-and-not-(numba-or-baseline)"
            [streams]="tests/test_streams.py -k (float16-or-float32)-and-(@-or-baseline)"
            [threads]="tests/test_threads.py -k not(stress-or-refused)"
            [forks]="tests/test_process.py -k fork-or-exit-or-float_state"
        )
        # Python frees little at exit, and NumPy's allocations may fail on purpose.
        export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:handle_segv=1 UBSAN_OPTIONS=print_stacktrace=1
        ;;
    thread)
        sanitizers=thread library=tsan
        order=(callers forks)
        pieces=(
            [callers]="tests/test_threads.py -k not(stress-or-refused-or-bits)"
            [forks]="tests/test_process.py -k test_fork"
        )
        # By default ThreadSanitizer ends a child of a process with several threads that starts threads itself.
        export TSAN_OPTIONS=die_after_fork=0:halt_on_error=1:exitcode=66
        ;;
    *) echo "unknown: $kind"; exit 2 ;;
esac

build=$PWD/build/sanitize-$kind
site=$build/site
compile() {
    local object=$build/$(basename "${1%.*}").o
    # What is newer than everything in src/ is kept: the whole takes ten minutes on two processors.
    [[ -f $object && -z $(find src -newer "$object" -type f -print -quit) ]] && return
    local how="-O1 -g1 -fno-omit-frame-pointer -fsanitize=$sanitizers -fno-sanitize-recover=all"
    # Kernels for instructions that this processor lacks are linked, not run: a third of the time less.
    [[ $1 == *avx512* ]] && ! grep -qs avx512f /proc/cpuinfo && how=-O0
    ${CC:-gcc} $how -fPIC -std=c11 -ffp-contract=off -fvisibility=hidden -pthread \
        -DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION -Isrc $includes -c "$1" -o "$object.new" && mv "$object.new" "$object"
}
if [[ $# -eq 0 || ${1:-} == build || ! -d $site ]]; then
    mkdir -p "$build"
    rm -rf "$site"
    FASTXENT_PURE=1 "$python" -m pip install -q --no-deps --no-build-isolation --target "$site" .
    [[ $build/_native.c -nt src/_native.pyx ]] || "$python" -m cython -3 src/_native.pyx -o "$build/_native.c"
    includes=$("$python" -c 'import numpy, sysconfig; print("-I" + numpy.get_include(), "-I" + sysconfig.get_path("include"))')
    export -f compile
    export build sanitizers includes
    ls "$build/_native.c" src/*.c src/isa/*.c | xargs -P "$(nproc)" -I{} bash -c 'compile {}'
    suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
    gcc -shared -pthread "-fsanitize=$sanitizers" "$build"/*.o -o "$site/fastxent/_native$suffix"
fi
[[ ${1:-} == build ]] && exit

export PYTHONPATH=$site PYTHONMALLOC=malloc
preload=$(gcc -print-file-name=lib$library.so)
best=$(LD_PRELOAD=$preload "$python" -P -c 'import fastxent; print(fastxent.show_config("dict")["instruction_set"])')
for piece in "${@:-${order[@]}}"; do
    # A minus stands for a blank within what -k selects.
    read -ra arguments <<< "${pieces[$piece]//@/$best}"
    [[ ${arguments[-2]} == -k ]] && arguments[-1]=${arguments[-1]//-/ }
    echo "=== $kind: $piece ($best)"
    LD_PRELOAD=$preload "$python" -P -m pytest -q -p no:cacheprovider -p no:xdist --capture=sys "${arguments[@]}"
done
echo "=== $kind: no fault"
