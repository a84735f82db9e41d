/* What any processor runs: one lane. */
#define FX_ISA baseline
#include "scalar.h"
