# Settings of every object of the build: C++17, position-independent, hidden symbols, ccache.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release)
endif()

set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

# Another package in the same process may contain another llama.cpp or ggml.
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)

# With CCACHE_BASEDIR set, a second checkout finds the cached objects of the first. `env` sets the variable, and
# not `cmake -E env`: pip's build isolation gives CMake a new path each time, and a file whose command line has
# changed is compiled again.
find_program(CCACHE_PROGRAM ccache)
find_program(ENV_PROGRAM env)
mark_as_advanced(CCACHE_PROGRAM ENV_PROGRAM)
if(CCACHE_PROGRAM AND NOT CMAKE_C_COMPILER_LAUNCHER AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(launcher ${CCACHE_PROGRAM})
    if(ENV_PROGRAM AND NOT WIN32)
        set(launcher ${ENV_PROGRAM} CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} ${CCACHE_PROGRAM})
    endif()
    foreach(language C CXX CUDA)
        set(CMAKE_${language}_COMPILER_LAUNCHER ${launcher})
    endforeach()
    message(STATUS "inferd: compiling through ${CCACHE_PROGRAM}")
endif()
