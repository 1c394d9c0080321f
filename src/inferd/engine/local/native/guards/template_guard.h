// Compiled into llama.cpp's `common` by a forced include, ahead of its own text.
//
// Its interpreter of chat templates was written for templates one trusts. With this it comes by the budget at every
// look at a value's type, which it takes in each expression and at each level of a nested value; and strings are
// instantiated in its own objects, not taken from GNU's C++ runtime, so that they grow through the `new` of budget.cpp.
#pragma once

#include <cstddef>  // brings the runtime's configuration, which sets the macro whatever a command line says

#ifdef _GLIBCXX_EXTERN_TEMPLATE
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
#endif

#include "budget.h"
#include "jinja/value.h"

namespace jinja {

template <typename T, typename Value>
bool is_val_within_budget(const Value &val) {
    inferd::spend_step();
    return is_val<T>(val);
}

}  // namespace jinja

#define is_val is_val_within_budget
