# add_cython_module(<dotted module name> <file.pyx> [<C++ source>…])
#
# Compiles the .pyx in C++ mode and links it with the further sources into an extension module; the target is
# named by the last part of the module's name. Packages are looked up in the current source directory, and every
# .pxd and .pxi below it counts as a dependency. Cython runs as `python -m cython`, because build isolation changes
# the path of the cython program, but not the path of the interpreter.

function(add_cython_module module pyx)
    string(REGEX REPLACE "^.*\\." "" target ${module})
    get_filename_component(pyx ${pyx} ABSOLUTE)
    set(cpp ${CMAKE_CURRENT_BINARY_DIR}/${module}.cpp)
    file(GLOB_RECURSE included CONFIGURE_DEPENDS *.pxd *.pxi)
    add_custom_command(
        OUTPUT ${cpp}
        COMMAND ${Python_EXECUTABLE} -m cython --cplus -3 --module-name ${module}
            -I ${CMAKE_CURRENT_SOURCE_DIR} -o ${cpp} ${pyx}
        DEPENDS ${pyx} ${included}
        COMMENT "Cythonizing ${module}"
        VERBATIM)
    python_add_library(${target} MODULE WITH_SOABI ${cpp} ${ARGN})

    get_filename_component(headers ${pyx} DIRECTORY)
    add_quoted_includes(${target} ${headers})
    if(MSVC)
        target_compile_options(${target} PRIVATE /utf-8 /bigobj)
    endif()
    if(NOT APPLE AND NOT WIN32)
        # Hides the symbols of static libraries that were compiled without hidden visibility.
        target_link_options(${target} PRIVATE LINKER:--version-script=${CMAKE_SOURCE_DIR}/cmake/exports.map)
    endif()
endfunction()

# add_quoted_includes(<target> <folder>…)
#
# Adds folders whose headers are found only by #include "…". Some of them have the same name as a header of the system
# or of llama.cpp, which #include <…> must still find.
function(add_quoted_includes target)
    foreach(folder IN LISTS ARGN)
        get_filename_component(folder ${folder} ABSOLUTE)
        if(MSVC)
            target_include_directories(${target} BEFORE PRIVATE ${folder})
        else()
            target_compile_options(${target} PRIVATE "SHELL:-iquote \"${folder}\"")
        endif()
    endforeach()
endfunction()
