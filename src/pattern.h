/*
 * Event types and the patterns that match them.
 *
 * A type is dot-separated words of printable characters, 255 bytes at most.  In a pattern `*` is exactly one word, `**` any number of words (also none).
 */
#ifndef OUTBOX_PATTERN_H
#define OUTBOX_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

/* NULL if it is a valid type (or pattern), else what is wrong, as a phrase for errdetail. */
extern const char *outbox_type_problem(const char *type, size_t size);
extern const char *outbox_pattern_problem(const char *pattern, size_t size);

/* Both must be valid, NUL-terminated.  Called from the other library. */
extern __attribute__((visibility("default"))) bool outbox_pattern_matches(const char *pattern, const char *type);

#endif							/* OUTBOX_PATTERN_H */
