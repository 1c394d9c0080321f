// Compiled into llama.cpp's `common` by a forced include, ahead of its own text.
//
// Its interpreter of chat templates was written for templates one trusts. With this it checks the budget at every look
// at a value's type, which it takes in each expression and at each level of a nested value.
#pragma once

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
