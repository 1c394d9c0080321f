# Toolchain file for the compilers in the folder INFERD_ZIG, which packaging/toolchain.py makes. They are clang with the
# headers and symbols of an old glibc, whatever glibc the building machine has.

list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES INFERD_ZIG INFERD_ZIG_MACHINE)

if(INFERD_ZIG_MACHINE) # cross-compiling: the target machine's architecture
    set(CMAKE_SYSTEM_NAME Linux)
    set(CMAKE_SYSTEM_PROCESSOR ${INFERD_ZIG_MACHINE})
endif()

set(CMAKE_C_COMPILER ${INFERD_ZIG}/clang)
set(CMAKE_CXX_COMPILER ${INFERD_ZIG}/clang++)
set(CMAKE_AR ${INFERD_ZIG}/ar)
set(CMAKE_RANLIB ${INFERD_ZIG}/ranlib)
