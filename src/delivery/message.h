/*
 * From an event to an HTTP request: CloudEvents 1.0 binary mode, Standard Webhooks 1.0.0 headers and signature.
 *
 * Pure: no I/O, no PostgreSQL.  The body is never copied: the bytes signed are the bytes sent.
 */
#ifndef OUTBOX_MESSAGE_H
#define OUTBOX_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OUTBOX_MAX_SECRETS 4
#define OUTBOX_ID_TEXT 37		/* a uuid as text, NUL included */

/* A signing key, decoded and made ready once per subscription version. */
typedef struct OutboxSigner OutboxSigner;

/* From raw key bytes (decoded whsec_); NULL when out of memory. */
extern OutboxSigner *outbox_signer_create(const unsigned char *key, size_t size);
extern void outbox_signer_free(OutboxSigner *signer);

/* Base64 of HMAC-SHA256 over "id.timestamp.body", with "v1," in front, NUL-terminated; out holds OUTBOX_SIGNATURE bytes.  False: OpenSSL refused. */
#define OUTBOX_SIGNATURE 48
extern bool outbox_sign(OutboxSigner *signer, const char *id, int64_t timestamp, const void *body, size_t size, char *out);

typedef struct OutboxHeader
{
	const char *name;
	const char *value;
} OutboxHeader;

typedef struct OutboxMessage
{
	char		id[OUTBOX_ID_TEXT];	/* webhook-id and ce-id */
	const char *source;			/* CloudEvents source, a URI-reference */
	const char *type;
	const char *key;			/* ce-partitionkey; NULL: none */
	int64_t		created_at;		/* microseconds since the Unix epoch */
	const char *content_type;	/* NULL: no Content-Type and no data */
	const char *traceparent;	/* ce-traceparent (the producer's) and traceparent; NULL: none */
	const OutboxHeader *headers;	/* the event's own */
	int			n_headers;
	const void *body;
	size_t		size;
} OutboxMessage;

/*
 * The header lines ("Name: value", NUL-terminated each, no CR LF) of one attempt, in one malloc'd block: lines[] points into it.
 * timestamp: Unix seconds of the attempt.  span: 8 random bytes for this attempt's traceparent.  Attribute values are UTF-8, percent-encoded as the
 * CloudEvents HTTP binding §3.1.3.2 demands; the event's own headers go out verbatim and are checked again.
 * NULL and *error (a constant) if something may not be sent: a control character, a reserved name.
 */
typedef struct OutboxRequestHeaders
{
	int			n;
	char	  **lines;
} OutboxRequestHeaders;

extern OutboxRequestHeaders *outbox_message_headers(const OutboxMessage *message, OutboxSigner *const *signers, int n_signers,
													int64_t timestamp, const unsigned char span[8], const char **error);
extern void outbox_message_headers_free(OutboxRequestHeaders *headers);

#endif							/* OUTBOX_MESSAGE_H */
