// Everything is hidden but what carries this mark.
#pragma once

#define GRAPHOPT_EXPORT __attribute__((visibility("default")))
