#include "common/op.h"

#include <cstring>

namespace graphopt {

int32_t OpClass::flag(Attributes const& attributes, char const* field) const {
  for (size_t i = 0; i < fields.size(); ++i) {
    if (std::strcmp(fields[i].name, field) == 0) return attributes.ints[i];
  }
  return 0;
}

float OpClass::number(Attributes const& attributes, char const* field) const {
  for (size_t i = 0; i < fields.size(); ++i) {
    if (std::strcmp(fields[i].name, field) == 0) return attributes.floats[i];
  }
  return 0.0f;
}

}  // namespace graphopt
