# add_cython_module(<dotted module name> <file.pyx> [<C++ source>…])
#
# Compiles the .pyx in C++ mode and links it with the further sources into an extension module; the target is
# named by the last part of the module's name. Every .pxd of the tree counts as a dependency. Cython is started
# as a module of the interpreter, whose path stays the same when build isolation moves Cython itself.

file(GLOB_RECURSE CYTHON_DECLARATIONS CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/*.pxd)

function(add_cython_module module pyx)
    string(REGEX REPLACE "^.*\\." "" target ${module})
    set(cpp ${CMAKE_CURRENT_BINARY_DIR}/${module}.cpp)
    add_custom_command(
        OUTPUT ${cpp}
        COMMAND ${Python_EXECUTABLE} -m cython --cplus -3 --module-name ${module}
            -I ${CMAKE_SOURCE_DIR}/src -o ${cpp} ${CMAKE_SOURCE_DIR}/${pyx}
        DEPENDS ${CMAKE_SOURCE_DIR}/${pyx} ${CYTHON_DECLARATIONS}
        COMMENT "Cythonizing ${pyx}"
        VERBATIM)
    python_add_library(${target} MODULE WITH_SOABI ${cpp} ${ARGN})
    target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/src)
    if(MSVC)
        target_compile_options(${target} PRIVATE /utf-8 /bigobj)
    elseif(NOT APPLE)
        # The symbols of static libraries that were built without our visibility, the C++ runtime's included.
        target_link_options(${target} PRIVATE LINKER:--exclude-libs,ALL)
    endif()
endfunction()
