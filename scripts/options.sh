# shellcheck shell=bash
# Sourced: what each CONFIG means.  config_options CONFIG sets the array
# OPTIONS for configure and exports what its build and its tests need in the
# environment.
# shellcheck disable=SC2034 # OPTIONS is for the script that sources this

config_options() {
    OPTIONS=()
    case $1 in
    release) ;;
    optimized) OPTIONS=(--enable-optimizations --with-lto) ;;
    debug) OPTIONS=(--with-pydebug) ;;
    freethreaded) OPTIONS=(--disable-gil) ;;
    freethreaded-debug) OPTIONS=(--disable-gil --with-pydebug) ;;
    asan)
        OPTIONS=(--with-pydebug --without-pymalloc --with-address-sanitizer --with-undefined-behavior-sanitizer)
        export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0:allocator_may_return_null=1:handle_segv=0}
        export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1:halt_on_error=1} ;;
    tsan)
        OPTIONS=(--with-pydebug --with-thread-sanitizer)
        if [ -z "${CC:-}" ] && command -v clang >/dev/null 2>&1; then
            export CC=clang
        fi
        export TSAN_OPTIONS=${TSAN_OPTIONS:-"suppressions=$TREE/Tools/tsan/suppressions.txt:allocator_may_return_null=1:handle_segv=0"} ;;
    esac
}
