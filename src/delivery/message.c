/*
 * From an event to the header lines of an HTTP request.
 *
 * CloudEvents 1.0 over HTTP in binary mode: the body is the payload as it is, the attributes are ce-* headers; in the other modes the body says it all.  Standard Webhooks 1.0.0: id, time of
 * the attempt and an HMAC over "id.timestamp.body", one signature for each key that is valid at the moment.
 *
 * The signature is the costly part, so a signer keys its HMAC once; each signature continues from that state.  All lines of a request share one
 * block of memory, sized before it is written: appends check the bound, so a wrong estimate would be a refused event, never an overrun.
 */
#include "message.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "../field.h"

#define MAC_SIZE 32				/* SHA-256 */

struct OutboxSigner
{
	EVP_MAC_CTX *mac;			/* keyed; EVP_MAC_init without a key returns it to that state */
};

OutboxSigner *
outbox_signer_create(const unsigned char *key, size_t size)
{
	static const unsigned char no_key[1];
	OSSL_PARAM	params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *) "SHA256", 0),
		OSSL_PARAM_construct_end(),
	};
	EVP_MAC    *hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	OutboxSigner *signer = calloc(1, sizeof(*signer));

	if (signer != NULL && hmac != NULL)
		signer->mac = EVP_MAC_CTX_new(hmac);
	EVP_MAC_free(hmac);			/* the context holds its own reference */

	/* to OpenSSL a NULL key means "as before", so an empty key must not be NULL */
	if (signer == NULL || signer->mac == NULL || !EVP_MAC_init(signer->mac, size > 0 ? key : no_key, size, params))
	{
		outbox_signer_free(signer);
		return NULL;
	}
	return signer;
}

void
outbox_signer_free(OutboxSigner *signer)
{
	if (signer == NULL)
		return;
	EVP_MAC_CTX_free(signer->mac);	/* cleanses the key */
	free(signer);
}

/* Standard Webhooks, "Signature scheme": v1, base64(HMAC-SHA256(key, id.timestamp.body)). */
bool
outbox_sign(OutboxSigner *signer, const char *id, int64_t timestamp, const void *body, size_t size, char *out)
{
	unsigned char mac[MAC_SIZE];
	size_t		mac_size;
	char		stamp[32];
	int			stamp_size = snprintf(stamp, sizeof(stamp), ".%lld.", (long long) timestamp);

	if (!EVP_MAC_init(signer->mac, NULL, 0, NULL) ||
		!EVP_MAC_update(signer->mac, (const unsigned char *) id, strlen(id)) ||
		!EVP_MAC_update(signer->mac, (const unsigned char *) stamp, (size_t) stamp_size) ||
		!EVP_MAC_update(signer->mac, body, size) ||
		!EVP_MAC_final(signer->mac, mac, &mac_size, sizeof(mac)) || mac_size != MAC_SIZE)
		return false;

	memcpy(out, "v1,", 3);
	EVP_EncodeBlock((unsigned char *) out + 3, mac, MAC_SIZE);	/* 44 characters and NUL */
	return true;
}

/*
 * Lines under construction.  A failure sets `error`, or `want`, and turns what follows into nothing, so that callers check once.
 */
typedef struct Lines
{
	OutboxRequestHeaders *headers;
	bool		joined;			/* lines of ours: all in the first slot */
	char	   *at;
	char	   *end;			/* behind the block */
	const char *error;
	bool		want;			/* of memory: nothing is wrong with the message */
} Lines;

static void
append(Lines *lines, const char *bytes, size_t size)
{
	if (lines->error != NULL || lines->want)
		return;
	if ((size_t) (lines->end - lines->at) < size)
	{
		lines->error = "headers larger than expected";
		return;
	}
	memcpy(lines->at, bytes, size);
	lines->at += size;
}

static void
append_text(Lines *lines, const char *text)
{
	append(lines, text, strlen(text));
}

/* "Name: "; the slot for the line was counted in reserve_lines(). */
static void
begin_line(Lines *lines, const char *name)
{
	if (lines->joined && lines->headers->n > 0)
		append(lines, "\r\n", 2);
	else
		lines->headers->lines[lines->headers->n++] = lines->at;
	append_text(lines, name);
	append(lines, ": ", 2);
}

static void
end_line(Lines *lines)
{
	if (!lines->joined)
		append(lines, "", 1);
}

static void
end_joined(Lines *lines)
{
	append(lines, "", 1);
	lines->joined = false;
}

static void
add_line(Lines *lines, const char *name, const char *value)
{
	begin_line(lines, name);
	append_text(lines, value);
	end_line(lines);
}

/*
 * CloudEvents HTTP binding §3.1.3.2: what is not printable ASCII, and space, double quote and percent, goes out as %XX of its UTF-8 bytes; upper
 * case.  Controls are not encoded but refused: §3.1 of the core forbids them in a String, and a receiver would decode them.
 */
static void
append_percent_encoded(Lines *lines, const char *value)
{
	static const char hex[] = "0123456789ABCDEF";

	for (; *value != '\0'; value++)
	{
		unsigned char c = (unsigned char) *value;

		if (c < 0x20 || c == 0x7f)
		{
			lines->error = "control character in an attribute";
			return;
		}
		if (c > 0x20 && c < 0x7f && c != '"' && c != '%')
			append(lines, value, 1);
		else
			append(lines, (const char[]) {'%', hex[c >> 4], hex[c & 15]}, 3);
	}
}

static void
add_attribute(Lines *lines, const char *name, const char *value)
{
	begin_line(lines, name);
	append_percent_encoded(lines, value);
	end_line(lines);
}

/* n digits of a number, from the last one on. */
static void
put_digits(char *out, int n, int64_t value)
{
	while (n-- > 0)
	{
		out[n] = (char) ('0' + value % 10);
		value /= 10;
	}
}

/*
 * By arithmetic rather than gmtime(): no libc calendar in the way of odd years, and a small part of its time.
 * Civil date from days: eras of 400 years, years that begin in March.
 */
bool
outbox_message_time(int64_t unix_us, char out[OUTBOX_TIME_TEXT])
{
	int64_t		seconds = unix_us / 1000000 - (unix_us % 1000000 < 0);
	int64_t		micros = unix_us - seconds * 1000000;
	int64_t		days = seconds / 86400 - (seconds % 86400 < 0);
	int64_t		second = seconds - days * 86400;
	int64_t		shifted = days + 719468;
	int64_t		era = shifted / 146097 - (shifted % 146097 < 0);
	int64_t		day_of_era = shifted - era * 146097;
	int64_t		year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
	int64_t		day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	int64_t		march_month = (5 * day_of_year + 2) / 153;
	int64_t		day = day_of_year - (153 * march_month + 2) / 5 + 1;
	int64_t		month = march_month < 10 ? march_month + 3 : march_month - 9;
	int64_t		year = year_of_era + era * 400 + (month <= 2);

	if (year < 0 || year > 9999)	/* RFC 3339 §5.6: four digits */
		return false;
	memcpy(out, "0000-00-00T00:00:00.000000Z", OUTBOX_TIME_TEXT);
	put_digits(out, 4, year);
	put_digits(out + 5, 2, month);
	put_digits(out + 8, 2, day);
	put_digits(out + 11, 2, second / 3600);
	put_digits(out + 14, 2, second / 60 % 60);
	put_digits(out + 17, 2, second % 60);
	put_digits(out + 20, 6, micros);
	return true;
}

static void
add_time(Lines *lines, int64_t unix_us)
{
	char		text[OUTBOX_TIME_TEXT];

	if (!outbox_message_time(unix_us, text))
		lines->error = "time out of range";
	else
		add_line(lines, "ce-time", text);
}

bool
outbox_message_is_traced(const OutboxMessage *message)
{
	return message->traceparent != NULL && outbox_traceparent_valid(message->traceparent, strlen(message->traceparent));
}

/*
 * CloudEvents distributed tracing extension: ce-traceparent keeps where the trace started; traceparent is this hop, so its parent id is this
 * attempt's span (W3C Trace Context §3.2.2.4).  A later version's extra fields are its own: what we write is version 00 (§4.3).
 */
static void
add_trace(Lines *lines, const OutboxMessage *message, const unsigned char span[8])
{
	const char *traceparent = message->traceparent;
	static const unsigned char zero[8];
	static const unsigned char one[8] = {[7] = 1};
	char		text[56];

	/* a batch is many hops' and so nobody's */
	if (message->format == OUTBOX_FORMAT_BATCH || !outbox_message_is_traced(message))
		return;
	if (message->format == OUTBOX_FORMAT_BINARY)
		add_line(lines, "ce-traceparent", traceparent);

	/* the all-zero span is invalid; one time in 2^64 the dice show it */
	if (memcmp(span, zero, sizeof(zero)) == 0)
		span = one;
	snprintf(text, sizeof(text), "00-%.32s-%02x%02x%02x%02x%02x%02x%02x%02x-%.2s", traceparent + 3,
			 span[0], span[1], span[2], span[3], span[4], span[5], span[6], span[7], traceparent + 53);
	add_line(lines, "traceparent", text);
}

static void
add_signatures(Lines *lines, const OutboxMessage *message, OutboxSigner *const *signers, int n_signers, int64_t timestamp)
{
	char		text[OUTBOX_SIGNATURE];

	if (n_signers == 0)
		return;
	begin_line(lines, "webhook-signature");
	for (int i = 0; i < n_signers; i++)
	{
		if (!outbox_sign(signers[i], message->id, timestamp, message->body, message->size, text))
		{
			lines->want = true;
			return;
		}
		if (i > 0)
			append(lines, " ", 1);
		append_text(lines, text);
	}
	end_line(lines);
}

static void
add_webhook(Lines *lines, const OutboxMessage *message, OutboxSigner *const *signers, int n_signers, int64_t timestamp)
{
	char		text[32];

	snprintf(text, sizeof(text), "%lld", (long long) timestamp);
	add_line(lines, "webhook-id", message->id);
	add_line(lines, "webhook-timestamp", text);
	add_signatures(lines, message, signers, n_signers, timestamp);
	if (message->replay)
		add_line(lines, "webhook-replay", "true");
}

static void
add_cloudevent(Lines *lines, const OutboxMessage *message)
{
	add_line(lines, "ce-specversion", "1.0");
	add_line(lines, "ce-id", message->id);
	add_attribute(lines, "ce-source", message->source);
	add_attribute(lines, "ce-type", message->type);
	add_time(lines, message->created_at);
	if (message->key != NULL)
		add_attribute(lines, "ce-partitionkey", message->key);
	if (message->content_type == NULL)
		return;
	if (!outbox_field_value_valid(message->content_type, strlen(message->content_type)))
	{
		lines->error = "content type is not a valid header value";
		return;
	}
	add_line(lines, "Content-Type", message->content_type);
}

/* Verbatim, so checked again here: what reaches libcurl is written to the wire as it is. */
static void
add_checked(Lines *lines, const OutboxHeader *header)
{
	if (!outbox_field_name_valid(header->name, strlen(header->name)))
		lines->error = "header name is not a token";
	else if (outbox_field_name_reserved(header->name, strlen(header->name)))
		lines->error = "header name is reserved";
	else if (!outbox_field_value_valid(header->value, strlen(header->value)))
		lines->error = "header value has a control character or is too long";
	else
		add_line(lines, header->name, header->value);
}

static bool
is_fixed(const OutboxMessage *message, const char *name)
{
	for (int i = 0; i < message->n_fixed; i++)
	{
		if (strcasecmp(message->fixed[i].name, name) == 0)
			return true;
	}
	return false;
}

/* A producer shall not replace the token that a receiver trusts: the subscription's headers win. */
static void
add_own(Lines *lines, const OutboxMessage *message)
{
	for (int i = 0; i < message->n_fixed && lines->error == NULL; i++)
		add_checked(lines, &message->fixed[i]);
	for (int i = 0; i < message->n_headers && lines->error == NULL; i++)
	{
		if (!is_fixed(message, message->headers[i].name))
			add_checked(lines, &message->headers[i]);
	}
}

/* Lines of ours, joined into one, at their longest: names, signatures, times, the two trace headers. */
#define FIXED_SIZE (560 + OUTBOX_MAX_SECRETS * OUTBOX_SIGNATURE)

static size_t
text_size(const char *text)
{
	return text == NULL ? 0 : strlen(text);
}

/* The array of lines, and behind it the bytes: at most what this message can need. */
static bool
reserve_lines(Lines *lines, const OutboxMessage *message)
{
	size_t		slots = 1 + (size_t) message->n_headers + (size_t) message->n_fixed;
	size_t		bytes = FIXED_SIZE + 3 * (text_size(message->source) + text_size(message->type) + text_size(message->key)) +
		text_size(message->content_type) + text_size(message->traceparent);
	size_t		prefix = sizeof(OutboxRequestHeaders) + slots * sizeof(char *);

	for (int i = 0; i < message->n_headers; i++)
		bytes += strlen(message->headers[i].name) + strlen(message->headers[i].value) + 3;
	for (int i = 0; i < message->n_fixed; i++)
		bytes += strlen(message->fixed[i].name) + strlen(message->fixed[i].value) + 3;

	lines->headers = malloc(prefix + bytes);
	if (lines->headers == NULL)
		return false;
	lines->headers->n = 0;
	lines->headers->size = prefix + bytes;
	lines->headers->secret = message->n_fixed > 0;
	lines->headers->lines = (char **) (lines->headers + 1);
	lines->at = (char *) lines->headers + prefix;
	lines->end = lines->at + bytes;
	return true;
}

OutboxRequestHeaders *
outbox_message_headers(const OutboxMessage *message, OutboxSigner *const *signers, int n_signers,
					   int64_t timestamp, const unsigned char span[8], const char **error)
{
	Lines		lines = {.joined = true};

	if (n_signers > OUTBOX_MAX_SECRETS)
	{
		*error = "too many secrets";
		return NULL;
	}
	if (!reserve_lines(&lines, message))
	{
		*error = NULL;
		return NULL;
	}
	add_webhook(&lines, message, signers, n_signers, timestamp);
	switch (message->format)
	{
		case OUTBOX_FORMAT_BINARY:
			add_cloudevent(&lines, message);
			break;
		case OUTBOX_FORMAT_STRUCTURED:
			add_line(&lines, "Content-Type", "application/cloudevents+json; charset=utf-8");
			break;
		case OUTBOX_FORMAT_BATCH:
			add_line(&lines, "Content-Type", "application/cloudevents-batch+json; charset=utf-8");
			break;
	}
	add_trace(&lines, message, span);
	end_joined(&lines);
	add_own(&lines, message);

	if (lines.error != NULL || lines.want)
	{
		*error = lines.want ? NULL : lines.error;
		outbox_message_headers_free(lines.headers);
		return NULL;
	}
	return lines.headers;
}

void
outbox_message_headers_free(OutboxRequestHeaders *headers)
{
	if (headers != NULL && headers->secret)
		OPENSSL_cleanse(headers, headers->size);
	free(headers);
}
