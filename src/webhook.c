/*
 * Webhook: is this request signed by who has the secret?
 *
 * Standard Webhooks 1.0.0, the symmetric scheme (v1), as its receivers check it: HMAC-SHA256 over id.timestamp.body, any one of several signatures, a
 * timestamp within a tolerance.  What a stranger can send is never an error, only false; what the receiver himself got wrong (no secret, no body) is always
 * an error, for NULL would pass where only false is looked for.
 *
 * Compares in constant time, and repeats neither secret nor signature in any message.
 */
#include "postgres.h"

#include "common/base64.h"
#include "common/cryptohash.h"
#include "common/hmac.h"
#include "common/sha2.h"
#include "compat.h"
#include "datatype/timestamp.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#define SECRET_PREFIX "whsec_"
#define SIGNATURE_PREFIX "v1,"
#define SIGNATURE_TEXT 44		/* base64 of 32 bytes */
#define MAX_TIMESTAMP 11		/* digits: until the year 5138 */

/* A piece of text that belongs to somebody else. */
typedef struct Span
{
	const char *data;
	int			size;
} Span;

/* ---- what the receiver must get right ---- */

static void
check_given(bool given, const char *name)
{
	if (!given)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s of a webhook must not be null", name),
				 errdetail("Nothing could be verified, and a null result might be taken for true."),
				 errhint("Give the header fields as a JSON object, the body as it came, and the secret.")));
}

static void
check_headers(Jsonb *headers)
{
	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers of a webhook must be a JSON object"),
				 errdetail("They are of another JSON type."),
				 errhint("Write them as {\"webhook-id\": \"...\", \"webhook-timestamp\": \"...\", \"webhook-signature\": \"...\"}.")));
}

static int64
tolerance_of(Interval *span)
{
	bool		small = span->month == 0 && span->day >= -1 && span->day <= 1 && span->time >= -USECS_PER_DAY && span->time <= USECS_PER_DAY;
	int64		tolerance = small ? span->day * USECS_PER_DAY + span->time : -1;

	if (tolerance < 0 || tolerance > USECS_PER_DAY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid tolerance"),
				 errdetail("It must be from 0 to 1 day."),
				 errhint("5 minutes is usual.")));
	return tolerance;
}

/*
 * The key behind whsec_, which may be missing, as may the padding; returns its size.  (The specification wants 24 to 64 bytes; no library insists, so neither do we.)
 */
static int
decode_secret(const text *secret, uint8 **key)
{
	const char *data = VARDATA_ANY(secret);
	int			size = VARSIZE_ANY_EXHDR(secret);
	int			prefix = strlen(SECRET_PREFIX);
	char	   *padded;
	int			decoded = -1;

	if (size >= prefix && memcmp(data, SECRET_PREFIX, prefix) == 0)
	{
		data += prefix;
		size -= prefix;
	}
	while (size > 0 && data[size - 1] == '=')
		size--;

	padded = palloc(size + 4);
	memcpy(padded, data, size);
	memcpy(padded + size, "===", 4);
	*key = palloc(pg_b64_dec_len(size + 3) + 1);
	if (size > 0 && size % 4 != 1 && strcspn(padded, "= \t\r\n") == size)
		decoded = OutboxBase64Decode(padded, (size + 3) / 4 * 4, *key, pg_b64_dec_len(size + 3) + 1);
	if (decoded <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid webhook secret"),
				 errdetail("A secret is the base64 of some bytes, as a rule after \"%s\".", SECRET_PREFIX),
				 errhint("Use the secret that the sender showed when the webhook was made.")));
	return decoded;
}

/* ---- what came ---- */

/* Adds a header's value, or those of an array; false if there is something else among them. */
static bool
add_values(JsonbValue *value, Span *values, int *n, int max)
{
	if (value->type == jbvString)
	{
		if (*n == max)
			return false;
		values[*n].data = value->val.string.val;
		values[*n].size = value->val.string.len;
		(*n)++;
		return true;
	}
	if (value->type == jbvBinary && JsonContainerIsArray(value->val.binary.data) && !JsonContainerIsScalar(value->val.binary.data))
	{
		JsonbIterator *iterator = JsonbIteratorInit(value->val.binary.data);
		JsonbIteratorToken token;
		JsonbValue	element;

		while ((token = JsonbIteratorNext(&iterator, &element, true)) != WJB_DONE)
		{
			if (token == WJB_ELEM && (element.type != jbvString || !add_values(&element, values, n, max)))
				return false;
		}
		return true;
	}
	return false;
}

/*
 * The values of a header field, whose name may be written in any case, and which may be there more than once; -1 if it is not as it should be.  Some frameworks give arrays of strings.
 */
static int
find_values(Jsonb *headers, const char *name, Span *values, int max)
{
	JsonbIterator *iterator = JsonbIteratorInit(&headers->root);
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;
	int			n = 0;

	while ((token = JsonbIteratorNext(&iterator, &key, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&iterator, &value, true);
		if (key.val.string.len == strlen(name) && pg_strncasecmp(key.val.string.val, name, key.val.string.len) == 0 &&
			!add_values(&value, values, &n, max))
			return -1;
	}
	return n;
}

/* The one value of a field, not empty. */
static bool
find_value(Jsonb *headers, const char *name, Span *value)
{
	return find_values(headers, name, value, 1) == 1 && value->size > 0;
}

/* Is it a number of seconds since 1970, no further from now than that? */
static bool
is_timely(const Span *timestamp, int64 tolerance)
{
	int64		seconds = 0;
	int64		off;

	if (timestamp->size > MAX_TIMESTAMP)
		return false;
	for (int i = 0; i < timestamp->size; i++)
	{
		if (timestamp->data[i] < '0' || timestamp->data[i] > '9')
			return false;
		seconds = seconds * 10 + (timestamp->data[i] - '0');
	}
	off = seconds * USECS_PER_SEC - (GetCurrentTimestamp() + (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY);
	return off >= -tolerance && off <= tolerance;
}

/* ---- signatures ---- */

/* The base64 of the HMAC that there should be. */
static void
sign(const uint8 *key, int key_size, const Span *id, const Span *timestamp, const bytea *body, char *signature)
{
	pg_hmac_ctx *context = pg_hmac_create(PG_SHA256);
	uint8		mac[PG_SHA256_DIGEST_LENGTH];

	if (context == NULL || pg_hmac_init(context, key, key_size) < 0 ||
		pg_hmac_update(context, (const uint8 *) id->data, id->size) < 0 ||
		pg_hmac_update(context, (const uint8 *) ".", 1) < 0 ||
		pg_hmac_update(context, (const uint8 *) timestamp->data, timestamp->size) < 0 ||
		pg_hmac_update(context, (const uint8 *) ".", 1) < 0 ||
		pg_hmac_update(context, (const uint8 *) VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body)) < 0 ||
		pg_hmac_final(context, mac, sizeof(mac)) < 0 ||
		OutboxBase64Encode(mac, sizeof(mac), signature, SIGNATURE_TEXT) != SIGNATURE_TEXT)
	{
		pg_hmac_free(context);
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute an HMAC")));
	}
	pg_hmac_free(context);
}

/* Takes the same time wherever they differ. */
static bool
equal_in_constant_time(const char *a, const char *b, int size)
{
	volatile unsigned char difference = 0;

	for (int i = 0; i < size; i++)
		difference |= (unsigned char) a[i] ^ (unsigned char) b[i];
	return difference == 0;
}

/* Is the signature among these, which spaces separate?  Of other versions nothing is known. */
static bool
is_among(const char *signature, Span list)
{
	int			prefix = strlen(SIGNATURE_PREFIX);

	while (list.size > 0)
	{
		const char *space = memchr(list.data, ' ', list.size);
		int			size = space != NULL ? space - list.data : list.size;

		if (size == prefix + SIGNATURE_TEXT && memcmp(list.data, SIGNATURE_PREFIX, prefix) == 0 &&
			equal_in_constant_time(list.data + prefix, signature, SIGNATURE_TEXT))
			return true;
		list.data += Min(size + 1, list.size);
		list.size -= Min(size + 1, list.size);
	}
	return false;
}

/* verify_webhook(headers jsonb, body bytea, secret text, tolerance interval) → boolean, never NULL */
PG_FUNCTION_INFO_V1(outbox_verify_webhook);
Datum
outbox_verify_webhook(PG_FUNCTION_ARGS)
{
	Jsonb	   *headers;
	bytea	   *body;
	uint8	   *key;
	int			key_size;
	int64		tolerance;
	Span		id;
	Span		timestamp;
	Span		signatures[16];
	int			n;
	char		expected[SIGNATURE_TEXT + 1];

	check_given(!PG_ARGISNULL(0), "headers");
	check_given(!PG_ARGISNULL(1), "body");
	check_given(!PG_ARGISNULL(2), "secret");
	check_given(!PG_ARGISNULL(3), "tolerance");
	headers = PG_GETARG_JSONB_P(0);
	check_headers(headers);
	body = PG_GETARG_BYTEA_PP(1);
	key_size = decode_secret(PG_GETARG_TEXT_PP(2), &key);
	tolerance = tolerance_of(PG_GETARG_INTERVAL_P(3));

	n = find_values(headers, "webhook-signature", signatures, lengthof(signatures));
	if (n < 1 || !find_value(headers, "webhook-id", &id) || !find_value(headers, "webhook-timestamp", &timestamp) ||
		!is_timely(&timestamp, tolerance))
		PG_RETURN_BOOL(false);
	sign(key, key_size, &id, &timestamp, body, expected);
	for (int i = 0; i < n; i++)
	{
		if (is_among(expected, signatures[i]))
			PG_RETURN_BOOL(true);
	}
	PG_RETURN_BOOL(false);
}
