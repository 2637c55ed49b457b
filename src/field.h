/*
 * What an HTTP field name, an HTTP field value and a W3C traceparent may be.
 *
 * Pure. Used where events enter (enqueue) and again where they leave (delivery), so that nothing depends on the first check.
 */
#ifndef OUTBOX_FIELD_H
#define OUTBOX_FIELD_H

#include <stdbool.h>
#include <stddef.h>

/* RFC 9110 §5.1: a token, at most 255 bytes. */
extern bool outbox_field_name_valid(const char *name, size_t size);

/* RFC 9110 §5.5: VCHAR, SP, HTAB and obs-text (bytes 0x80 … 0xFF), no leading or trailing white space; no CR, LF, NUL or other control; at most 8 kB. */
extern bool outbox_field_value_valid(const char *value, size_t size);

/* Names the sender sets itself: webhook-*, ce-*, host, content-length, content-type, transfer-encoding, connection, traceparent … any case. */
extern bool outbox_field_name_reserved(const char *name, size_t size);

/* W3C Trace Context: version 00 … fe, lower-case hex, trace and parent id not all zero. */
extern bool outbox_traceparent_valid(const char *value, size_t size);

#endif							/* OUTBOX_FIELD_H */
