/* What a handler needs of XLA's foreign function interface, a C interface that is stable by its makers' word: these are
 * its structures as of version 0.1, the oldest that today's runtimes take, under names of our own. Later versions only
 * add to them. tests/test_jax_handler.py compares them with the headers of the installed jaxlib. */
#ifndef FASTXENT_XLA_FFI_H
#define FASTXENT_XLA_FFI_H

#include <stddef.h>
#include <stdint.h>

enum { FX_XLA_MAJOR = 0, FX_XLA_MINOR = 1 };
enum { FX_XLA_METADATA = 1 }; /* an extension's type */
enum { FX_XLA_BUFFER = 1 };   /* an argument's or result's type */
enum { FX_XLA_ARRAY = 1 };    /* an attribute's type */
enum { FX_XLA_EXECUTE = 3 };  /* a stage */

typedef enum {
    FX_XLA_INVALID_ARGUMENT = 3,
    FX_XLA_RESOURCE_EXHAUSTED = 8,
    FX_XLA_OUT_OF_RANGE = 11,
} FxXlaCode;

typedef enum {
    FX_XLA_PRED = 1,
    FX_XLA_S8,
    FX_XLA_S16,
    FX_XLA_S32,
    FX_XLA_S64,
    FX_XLA_U8,
    FX_XLA_U16,
    FX_XLA_U32,
    FX_XLA_U64,
    FX_XLA_F16,
    FX_XLA_F32,
    FX_XLA_F64,
    FX_XLA_BF16 = 16,
} FxXlaDtype;

typedef struct FxXlaExtension {
    size_t size;
    int type;
    struct FxXlaExtension *next;
} FxXlaExtension;

typedef struct {
    size_t size;
    FxXlaExtension *extension;
    int major, minor;
} FxXlaVersion;

typedef struct {
    size_t size;
    FxXlaVersion version;
    uint32_t traits;
} FxXlaMetadata;

typedef struct {
    FxXlaExtension base;
    FxXlaMetadata *metadata;
} FxXlaMetadataExtension;

typedef struct FxXlaError FxXlaError; /* the runtime's own; NULL is success */

typedef struct {
    size_t size;
    FxXlaExtension *extension;
    const char *message;
    FxXlaCode code;
} FxXlaErrorArguments;

typedef struct {
    size_t size;
    FxXlaExtension *extension;
    FxXlaVersion version;
    const void *internal;
    FxXlaError *(*create_error)(FxXlaErrorArguments *arguments);
} FxXlaApi;

typedef struct {
    size_t size;
    FxXlaExtension *extension;
    FxXlaDtype dtype;
    void *data;
    int64_t rank;
    int64_t *dims;
} FxXlaBuffer;

typedef struct {
    FxXlaDtype dtype;
    size_t count;
    void *data;
} FxXlaArray;

typedef struct {
    const char *text;
    size_t length;
} FxXlaString;

typedef struct {
    size_t size;
    FxXlaExtension *extension;
    int64_t count;
    int *types;
    void **items;
} FxXlaList;

typedef struct {
    size_t size;
    FxXlaExtension *extension;
    int64_t count;
    int *types;
    FxXlaString **names; /* in alphabetical order */
    void **items;
} FxXlaAttributes;

typedef struct {
    size_t size;
    FxXlaExtension *extension;
    const FxXlaApi *api;
    void *context;
    int stage;
    FxXlaList arguments, results;
    FxXlaAttributes attributes;
} FxXlaFrame;

/* The handler, for jax.ffi.register_ffi_target: what it takes is said in xla_ffi.c. */
FxXlaError *fx_xla_handler(FxXlaFrame *frame);

/* The instruction set of calls from now on. */
void fx_xla_use_isa(int isa);

#endif
