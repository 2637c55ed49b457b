/*
 * Events in CloudEvents' JSON format (JSON Event Format for CloudEvents 1.0.2).
 *
 * The data of a jsonb payload is its text as it is: it is JSON already.  The bytes of enqueue_raw() are data_base64, unless their content type says that they are text and they are
 * UTF-8: then they are a string.  So a receiver always gets back the same data as in binary mode.
 *
 * Written for speed: what an event needs at most is reserved once, then everything is copied; nothing is allocated for each event.
 */
#include "envelope.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define KEPT_ROOM ((size_t) 1024 * 1024)	/* more is given back after a large body */

struct OutboxEnvelope
{
	char	   *bytes;
	size_t		size;
	size_t		room;
	bool		array;
	int			n;
	EVP_MD_CTX *ids;			/* of an array: over the members' ids so far */
	char		only_id[OUTBOX_ID_TEXT];
};

OutboxEnvelope *
outbox_envelope_create(void)
{
	OutboxEnvelope *envelope = calloc(1, sizeof(*envelope));

	if (envelope != NULL)
		envelope->ids = EVP_MD_CTX_new();
	if (envelope == NULL || envelope->ids == NULL)
	{
		free(envelope);
		return NULL;
	}
	return envelope;
}

void
outbox_envelope_free(OutboxEnvelope *envelope)
{
	if (envelope == NULL)
		return;
	EVP_MD_CTX_free(envelope->ids);
	free(envelope->bytes);
	free(envelope);
}

void
outbox_envelope_begin(OutboxEnvelope *envelope, bool array)
{
	envelope->size = 0;
	envelope->n = 0;
	envelope->array = array;
}

static bool
reserve(OutboxEnvelope *envelope, size_t more)
{
	size_t		room = envelope->room * 2;
	char	   *bytes;

	if (envelope->room - envelope->size >= more)
		return true;
	if (room < envelope->size + more)
		room = envelope->size + more;
	bytes = realloc(envelope->bytes, room);
	if (bytes == NULL)
		return false;
	envelope->bytes = bytes;
	envelope->room = room;
	return true;
}

/* ---- strings ---- */

/* What a byte of UTF-8 becomes in a JSON string (RFC 8259 §7): itself (0), a backslash and this, or \u00XX ('u'). */
static const char escapes[256] = {
	'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'b', 't', 'n', 'u', 'f', 'r', 'u', 'u',
	'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u',
	['"'] = '"', ['\\'] = '\\', [0x7f] = 'u'
};

static size_t
escaped_size(const char *text, size_t size)
{
	size_t		result = size;

	for (size_t i = 0; i < size; i++)
	{
		char		escape = escapes[(unsigned char) text[i]];

		if (escape != 0)
			result += escape == 'u' ? 5 : 1;
	}
	return result;
}

/* Behind `at`, where there is room; returns the new end. */
static char *
put_escaped(char *at, const char *text, size_t size)
{
	static const char hex[] = "0123456789abcdef";
	size_t		done = 0;

	for (size_t i = 0; i < size; i++)
	{
		unsigned char c = (unsigned char) text[i];

		if (escapes[c] == 0)
			continue;
		memcpy(at, text + done, i - done);
		at += i - done;
		*at++ = '\\';
		*at++ = escapes[c];
		if (escapes[c] == 'u')
		{
			*at++ = '0';
			*at++ = '0';
			*at++ = hex[c >> 4];
			*at++ = hex[c & 15];
		}
		done = i + 1;
	}
	memcpy(at, text + done, size - done);
	return at + (size - done);
}

static char *
put(char *at, const char *bytes, size_t size)
{
	memcpy(at, bytes, size);
	return at + size;
}

#define PUT(at, literal) put(at, literal, sizeof(literal) - 1)

/* Well-formed UTF-8 (Unicode 3.9, table 3-7): no overlong forms, no surrogates, nothing above U+10FFFF. */
static bool
is_utf8(const char *text, size_t size)
{
	const unsigned char *s = (const unsigned char *) text;
	const unsigned char *end = s + size;

	while (s < end)
	{
		unsigned char c = *s++;
		unsigned char low = 0x80;
		unsigned char high = 0xbf;
		int			more;

		if (c < 0x80)
			continue;
		if (c >= 0xc2 && c <= 0xdf)
			more = 1;
		else if (c >= 0xe0 && c <= 0xef)
			more = 2;
		else if (c >= 0xf0 && c <= 0xf4)
			more = 3;
		else
			return false;
		if (c == 0xe0)
			low = 0xa0;
		else if (c == 0xed)
			high = 0x9f;
		else if (c == 0xf0)
			low = 0x90;
		else if (c == 0xf4)
			high = 0x8f;
		if (end - s < more)
			return false;
		for (; more > 0; more--, s++, low = 0x80, high = 0xbf)
			if (*s < low || *s > high)
				return false;
	}
	return true;
}

/* CloudEvents 1.0 §3.1: no controls in a String; the same rule as in binary mode. */
static bool
is_attribute(const char *value, size_t size, const char **error)
{
	bool		ascii = true;

	for (size_t i = 0; i < size; i++)
	{
		unsigned char c = (unsigned char) value[i];

		if (c < 0x20 || c == 0x7f)
		{
			*error = "control character in an attribute";
			return false;
		}
		ascii &= c < 0x80;
	}
	if (!ascii && !is_utf8(value, size))
	{
		*error = "an attribute is not UTF-8";
		return false;
	}
	return true;
}

/* ---- data ---- */

typedef enum DataForm
{
	DATA_NONE,
	DATA_JSON,					/* verbatim */
	DATA_STRING,
	DATA_BASE64
} DataForm;

static bool
ends_with(const char *text, size_t size, const char *end)
{
	size_t		length = strlen(end);

	return size >= length && strncasecmp(text + size - length, end, length) == 0;
}

/* Does this media type promise text that may be written as UTF-8: text/…, XML, in that charset or in none that is named? */
static bool
is_text(const char *content_type)
{
	size_t		size = strcspn(content_type, "; \t");

	if (strncasecmp(content_type, "text/", 5) != 0 && !ends_with(content_type, size, "/xml") && !ends_with(content_type, size, "+xml"))
		return false;
	for (const char *at = content_type + size; *at != '\0'; at++)
	{
		if (strncasecmp(at, "charset=", 8) != 0)
			continue;
		at += 8;
		at += *at == '"';
		return strncasecmp(at, "utf-8", 5) == 0 || strncasecmp(at, "us-ascii", 8) == 0;
	}
	return true;
}

static DataForm
form_of(const OutboxMessage *message)
{
	if (message->body == NULL || (message->content_type == NULL && message->size == 0))
		return DATA_NONE;
	if (message->json)
		return DATA_JSON;
	if (message->content_type != NULL && is_text(message->content_type) && is_utf8(message->body, message->size))
		return DATA_STRING;
	return DATA_BASE64;
}

static size_t
data_size(const OutboxMessage *message, DataForm form)
{
	switch (form)
	{
		case DATA_NONE:
			break;
		case DATA_JSON:
			return message->size;
		case DATA_STRING:
			return escaped_size(message->body, message->size);
		case DATA_BASE64:
			return (message->size + 2) / 3 * 4 + 1;	/* and the NUL that OpenSSL writes */
	}
	return 0;
}

static char *
put_data(char *at, const OutboxMessage *message, DataForm form)
{
	switch (form)
	{
		case DATA_NONE:
			break;
		case DATA_JSON:
			at = PUT(at, ",\"data\":");
			at = put(at, message->body, message->size);
			break;
		case DATA_STRING:
			at = PUT(at, ",\"data\":\"");
			at = put_escaped(at, message->body, message->size);
			*at++ = '"';
			break;
		case DATA_BASE64:
			at = PUT(at, ",\"data_base64\":\"");
			at += EVP_EncodeBlock((unsigned char *) at, message->body, (int) message->size);
			*at++ = '"';
			break;
	}
	return at;
}

/* ---- events ---- */

#define FIXED_SIZE 320			/* names, punctuation, id, time: at most */

static char *
put_event(char *at, const OutboxMessage *message, const char *time, DataForm form, const size_t lengths[4], bool traced)
{
	at = PUT(at, "{\"specversion\":\"1.0\",\"id\":\"");
	at = put(at, message->id, strlen(message->id));
	at = PUT(at, "\",\"source\":\"");
	at = put_escaped(at, message->source, lengths[0]);
	at = PUT(at, "\",\"type\":\"");
	at = put_escaped(at, message->type, lengths[1]);
	at = PUT(at, "\",\"time\":\"");
	at = put(at, time, OUTBOX_TIME_TEXT - 1);
	if (message->key != NULL)
	{
		at = PUT(at, "\",\"partitionkey\":\"");
		at = put_escaped(at, message->key, lengths[2]);
	}
	if (traced)
	{
		at = PUT(at, "\",\"traceparent\":\"");
		at = put_escaped(at, message->traceparent, strlen(message->traceparent));
	}
	if (message->content_type != NULL)
	{
		at = PUT(at, "\",\"datacontenttype\":\"");
		at = put_escaped(at, message->content_type, lengths[3]);
	}
	*at++ = '"';
	at = put_data(at, message, form);
	*at++ = '}';
	return at;
}

/* Over all ids; a context is only begun when it is needed. */
static bool
add_id(OutboxEnvelope *envelope, const OutboxMessage *message)
{
	if (!envelope->array)
	{
		memcpy(envelope->only_id, message->id, OUTBOX_ID_TEXT);
		return true;
	}
	return (envelope->n > 0 || EVP_DigestInit_ex(envelope->ids, EVP_sha256(), NULL)) &&
		EVP_DigestUpdate(envelope->ids, message->id, strlen(message->id)) &&
		EVP_DigestUpdate(envelope->ids, "\n", 1);
}

OutboxFilling
outbox_envelope_add(OutboxEnvelope *envelope, const OutboxMessage *message, size_t limit, const char **error)
{
	const char *const attributes[4] = {message->source, message->type, message->key, message->content_type};
	size_t		lengths[4] = {0};
	size_t		most = FIXED_SIZE;
	bool		traced = outbox_message_is_traced(message) && is_utf8(message->traceparent, strlen(message->traceparent));
	char		time[OUTBOX_TIME_TEXT];
	DataForm	form;
	char	   *at;

	for (int i = 0; i < 4; i++)
	{
		if (attributes[i] == NULL)
			continue;
		lengths[i] = strlen(attributes[i]);
		most += 6 * lengths[i];
		if (!is_attribute(attributes[i], lengths[i], error))
			return OUTBOX_UNFIT;
	}
	if (!outbox_message_time(message->created_at, time))
	{
		*error = "time out of range";
		return OUTBOX_UNFIT;
	}
	form = form_of(message);
	if (form == DATA_JSON && !message->utf8 && !is_utf8(message->body, message->size))
	{
		*error = "the payload is not UTF-8";
		return OUTBOX_UNFIT;
	}
	most += data_size(message, form) + (traced ? 6 * strlen(message->traceparent) : 0);
	if (!reserve(envelope, most))
		return OUTBOX_NO_MEMORY;

	at = envelope->bytes + envelope->size;
	if (envelope->array)
		*at++ = envelope->n == 0 ? '[' : ',';
	at = put_event(at, message, time, form, lengths, traced);
	if (envelope->n > 0 && (size_t) (at - envelope->bytes) + 1 > limit)
		return OUTBOX_FULL;
	if (!add_id(envelope, message))
		return OUTBOX_NO_MEMORY;
	envelope->size = (size_t) (at - envelope->bytes);
	envelope->n++;
	return OUTBOX_FILLED;
}

/* The first 128 bits of the hash, but for the version and the variant. */
static bool
id_of_array(OutboxEnvelope *envelope, char id[OUTBOX_ID_TEXT])
{
	static const char hex[] = "0123456789abcdef";
	unsigned char hash[EVP_MAX_MD_SIZE];

	if (!EVP_DigestFinal_ex(envelope->ids, hash, NULL))
		return false;
	hash[6] = (unsigned char) (0x80 | (hash[6] & 0x0f));
	hash[8] = (unsigned char) (0x80 | (hash[8] & 0x3f));
	for (int i = 0; i < 16; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*id++ = '-';
		*id++ = hex[hash[i] >> 4];
		*id++ = hex[hash[i] & 15];
	}
	*id = '\0';
	return true;
}

char *
outbox_envelope_end(OutboxEnvelope *envelope, size_t *size, char id[OUTBOX_ID_TEXT])
{
	char	   *copy;

	if (!envelope->array)
		memcpy(id, envelope->only_id, OUTBOX_ID_TEXT);
	else
	{
		/* every event reserved more than it needed */
		envelope->bytes[envelope->size++] = ']';
		if (!id_of_array(envelope, id))
			return NULL;
	}
	*size = envelope->size;
	copy = malloc(envelope->size);
	if (copy != NULL)
		memcpy(copy, envelope->bytes, envelope->size);
	if (envelope->room > KEPT_ROOM)
	{
		free(envelope->bytes);
		envelope->bytes = NULL;
		envelope->room = 0;
	}
	return copy;
}
