/*
 * Events in CloudEvents' JSON format: one (structured mode), or an array of them (batched mode).
 *
 * Pure: no I/O, no PostgreSQL.  An envelope is used again for one request after the other; what is sent is a copy.
 */
#ifndef OUTBOX_ENVELOPE_H
#define OUTBOX_ENVELOPE_H

#include "message.h"

typedef struct OutboxEnvelope OutboxEnvelope;

typedef enum OutboxFilling
{
	OUTBOX_FILLED,
	OUTBOX_FULL,				/* it would be larger than the limit: nothing was changed */
	OUTBOX_UNFIT,				/* this event cannot be written in JSON: nothing was changed, *error says why */
	OUTBOX_NO_MEMORY
} OutboxFilling;

/* NULL: out of memory. */
extern OutboxEnvelope *outbox_envelope_create(void);
extern void outbox_envelope_free(OutboxEnvelope *envelope);

/* Begins the body of another request: with an array, or for a single event. */
extern void outbox_envelope_begin(OutboxEnvelope *envelope, bool array);

/* Adds an event; the first one is always within the limit (bytes of the finished body). */
extern OutboxFilling outbox_envelope_add(OutboxEnvelope *envelope, const OutboxMessage *message, size_t limit, const char **error);

/*
 * Ends the body: a malloc'd copy of it, and the webhook-id that belongs to it. Of a single event that is its id.  Of an array: a UUID of version 8 (RFC 9562 §5.8), made of the
 * first bits of SHA-256 over the members' ids as text, in their order, each followed by a line feed: the same members in the same order are the same id, and nothing else is.
 * NULL: out of memory.
 */
extern char *outbox_envelope_end(OutboxEnvelope *envelope, size_t *size, char id[OUTBOX_ID_TEXT]);

#endif							/* OUTBOX_ENVELOPE_H */
