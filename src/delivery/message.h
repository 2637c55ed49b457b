/*
 * From an event to an HTTP request: CloudEvents 1.0 over HTTP, Standard Webhooks 1.0.0 headers and signature.
 *
 * Pure: no I/O, no PostgreSQL.  The body is never copied: the bytes signed are the bytes sent.  Where the body is more than the payload, it comes from envelope.h.
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

/* The modes of the CloudEvents HTTP binding; also the numbers of outbox.subscription's formats in memory. */
typedef enum OutboxFormat
{
	OUTBOX_FORMAT_BINARY,		/* the body is the payload, the attributes are ce-* headers */
	OUTBOX_FORMAT_STRUCTURED,	/* the body is an event in JSON */
	OUTBOX_FORMAT_BATCH			/* the body is an array of such */
} OutboxFormat;

typedef struct OutboxMessage
{
	OutboxFormat format;
	char		id[OUTBOX_ID_TEXT];	/* webhook-id; but for a batch also the event's id */
	const char *source;			/* CloudEvents source, a URI-reference */
	const char *type;
	const char *key;			/* ce-partitionkey; NULL: none */
	int64_t		created_at;		/* microseconds since the Unix epoch */
	const char *content_type;	/* NULL: no Content-Type and no data */
	const char *traceparent;	/* ce-traceparent (the producer's) and traceparent; NULL: none */
	const OutboxHeader *headers;	/* the event's own */
	int			n_headers;
	const OutboxHeader *fixed;	/* the subscription's: they win over the event's own of the same name */
	int			n_fixed;
	const void *body;
	size_t		size;
	bool		json;			/* body is the text of a jsonb payload … */
	bool		utf8;			/* … and known to be UTF-8 */
	bool		replay;			/* webhook-replay: it was done before, and somebody asked for it once more */
} OutboxMessage;

/*
 * The header lines ("Name: value", NUL-terminated each) of one attempt, in one malloc'd block: lines[] points into it.  Those of ours (webhook-*, ce-*, Content-Type, traceparent) are one text, the
 * first, with CR LF between them: libcurl looks through the list a dozen times for names that could be in it, but sends each text as it is.
 * timestamp: Unix seconds of the attempt.  span: 8 random bytes for this attempt's traceparent.  Attribute values are UTF-8, percent-encoded as the
 * CloudEvents HTTP binding §3.1.3.2 demands; headers of event and subscription go out verbatim and are checked again.  Of a message whose body is an envelope, the attributes
 * are in there: id, body, headers, and in structured mode traceparent are all that is looked at.
 * NULL and *error (a constant) if something may not be sent: a control character, a reserved name.  NULL and no *error if it is no fault of the message's: there is no memory, for OpenSSL neither.
 */
typedef struct OutboxRequestHeaders
{
	int			n;
	char	  **lines;
	size_t		size;			/* of the block */
	bool		secret;			/* it has headers of the subscription: wiped before it is freed */
} OutboxRequestHeaders;

extern OutboxRequestHeaders *outbox_message_headers(const OutboxMessage *message, OutboxSigner *const *signers, int n_signers,
													int64_t timestamp, const unsigned char span[8], const char **error);
extern void outbox_message_headers_free(OutboxRequestHeaders *headers);

/* RFC 3339 in UTC with microseconds; false: not a year of four digits. */
#define OUTBOX_TIME_TEXT 28
extern bool outbox_message_time(int64_t unix_us, char out[OUTBOX_TIME_TEXT]);

/* Does it have a valid trace context? One that is not is dropped, as enqueue would have. */
extern bool outbox_message_is_traced(const OutboxMessage *message);

#endif							/* OUTBOX_MESSAGE_H */
