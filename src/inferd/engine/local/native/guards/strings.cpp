// Strings and string streams for all of this extension, in place of those of GNU's C++ runtime.
//
// The runtime's own copies allocate with the runtime's `new`, which no budget counts: a template could double a string
// until the machine has no memory left. The linker takes these copies first, and exports.map keeps them inside. They
// must stay away from number formatting and other facets: a locale finds a facet by the address of its id, and a
// private copy of such an id makes every stream drop its text from the first number on.
#include <sstream>
#include <string>

#ifdef __GLIBCXX__
template class std::basic_string<char>;
template class std::basic_stringbuf<char>;
template class std::basic_istringstream<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;
#endif
