# INFERD_PORTABLE: one build for every CPU of an architecture, for wheels.
#
# ggml and its backends become shared libraries in the folder inferd/engine/local/ggml. When the engine starts, it
# loads the backends, and of the CPU variants only the best that the machine can run. llama.cpp itself stays static.
# The shared libraries have C interfaces only, so each of them may contain its own C++ runtime. Without this option,
# everything is static and compiled for the CPU of the building machine.

option(INFERD_PORTABLE "Build all CPU variants, chosen at run time, instead of this machine's own" OFF)
set(INFERD_COMPANION "" CACHE STRING "Build this GPU backend (cuda, vulkan) for a companion package")
set(INFERD_CPU_VARIANTS "" CACHE STRING "Of the CPU variants, build only these (a list; empty: all)")

if(NOT INFERD_PORTABLE)
    return()
endif()

set(GGML_NATIVE OFF)
set(GGML_BACKEND_DL ON)
set(GGML_CPU_ALL_VARIANTS ON)
# llama.cpp turns these options on. Here ggml is added before llama.cpp, and by itself it has them off.
set(GGML_LLAMAFILE_DEFAULT ON)
set(GGML_CUDA_GRAPHS_DEFAULT ON)
set(GGML_BUILD_NUMBER ${LLAMA_BUILD_NUMBER})
set(GGML_BUILD_COMMIT ${LLAMA_BUILD_COMMIT})
if(INFERD_COMPANION)
    string(TOUPPER GGML_${INFERD_COMPANION} option)
    set(${option} ON)
endif()
unset(GGML_AVAILABLE_BACKENDS CACHE) # the list of an earlier configuration, with other options

set(BUILD_SHARED_LIBS ON)
add_subdirectory(${LLAMA_DIR}/ggml ggml EXCLUDE_FROM_ALL)
set(BUILD_SHARED_LIBS OFF)

# The names have no version, because a wheel cannot contain symbolic links. They are unique to inferd, because the
# dynamic linker would use a library of the same name that another package of the process has loaded.
foreach(library ggml ggml-base)
    set_property(TARGET ${library} PROPERTY VERSION)
    set_property(TARGET ${library} PROPERTY SOVERSION)
    set_property(TARGET ${library} PROPERTY OUTPUT_NAME inferd-${library})
endforeach()

set(built ${GGML_AVAILABLE_BACKENDS})
if(INFERD_COMPANION)
    # The companion package is installed beside inferd, and beside NVIDIA's packages with the libraries of CUDA.
    set(gpu ggml-${INFERD_COMPANION})
    list(REMOVE_ITEM built ${gpu})
    set(beside "$ORIGIN/../inferd/engine/local/ggml:$ORIGIN/../nvidia/cu13/lib")
    set_target_properties(${gpu} PROPERTIES
        INSTALL_RPATH "${beside}" BUILD_WITH_INSTALL_RPATH ON
        # The library of the driver may be empty while linking; see packaging/gpu.py.
        LINK_OPTIONS "LINKER:-s;LINKER:--no-as-needed")
    install(TARGETS ${gpu} LIBRARY DESTINATION inferd_${INFERD_COMPANION} COMPONENT companion)
endif()
if(INFERD_CPU_VARIANTS)
    # The target ggml depends on every variant. The variants that are not wanted are compiled as empty libraries and
    # not installed.
    file(WRITE ${CMAKE_BINARY_DIR}/empty.c "typedef int inferd_empty;\n")
    foreach(backend IN LISTS GGML_AVAILABLE_BACKENDS)
        string(REGEX REPLACE "^ggml-cpu-" "" variant ${backend})
        if(backend MATCHES "^ggml-cpu-" AND NOT variant IN_LIST INFERD_CPU_VARIANTS)
            set_property(TARGET ${backend} PROPERTY SOURCES ${CMAKE_BINARY_DIR}/empty.c)
            list(REMOVE_ITEM built ${backend})
        endif()
    endforeach()
endif()

set_target_properties(ggml ggml-base ${built} PROPERTIES
    INSTALL_RPATH "$ORIGIN" BUILD_WITH_INSTALL_RPATH ON LINK_OPTIONS LINKER:-s)
install(TARGETS ggml ggml-base ${built}
    PUBLIC_HEADER DESTINATION include COMPONENT unused
    LIBRARY DESTINATION inferd/engine/local/ggml COMPONENT inferd)
