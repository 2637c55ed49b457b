/*
 * message: the published signature and encoding vectors, and which lines an event becomes.
 */
#include "delivery/message.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "tap.h"

static const unsigned char span[8] = {0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7};

#define ID "0190b6a0-0000-7000-8000-000000000000"
#define TRACEPARENT "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

/* Standard Webhooks' own vector, from the tests of its libraries. */
static OutboxSigner *
vector_signer(void)
{
	unsigned char key[64];
	int			size = EVP_DecodeBlock(key, (const unsigned char *) "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 32);

	return outbox_signer_create(key, (size_t) size);
}

#define VECTOR_ID "msg_p5jXN8AQM9LWM0D4loKWxJek"
#define VECTOR_TIMESTAMP 1614265330
#define VECTOR_BODY "{\"test\": 2432232314}"
#define VECTOR_SIGNATURE "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

/* What the room asks for memory, and for it to sign, unless there is none. */
static bool no_memory;
static bool no_mac;
extern void *__real_malloc(size_t size);
extern int	__real_EVP_MAC_init(EVP_MAC_CTX *context, const unsigned char *key, size_t size, const OSSL_PARAM params[]);

void *
__wrap_malloc(size_t size)
{
	return no_memory ? NULL : __real_malloc(size);
}

int
__wrap_EVP_MAC_init(EVP_MAC_CTX *context, const unsigned char *key, size_t size, const OSSL_PARAM params[])
{
	return no_mac ? 0 : __real_EVP_MAC_init(context, key, size, params);
}

static void
test_signature(void)
{
	OutboxSigner *signer = vector_signer();
	OutboxSigner *empty = outbox_signer_create(NULL, 0);
	char		first[OUTBOX_SIGNATURE];
	char		other[OUTBOX_SIGNATURE];
	char		again[OUTBOX_SIGNATURE];

	ok(outbox_sign(signer, VECTOR_ID, VECTOR_TIMESTAMP, VECTOR_BODY, strlen(VECTOR_BODY), first) &&
	   strcmp(first, VECTOR_SIGNATURE) == 0, "the published v1 vector");
	ok(outbox_sign(signer, VECTOR_ID, VECTOR_TIMESTAMP + 1, VECTOR_BODY, strlen(VECTOR_BODY), other) &&
	   strcmp(first, other) != 0, "another timestamp, another signature");
	ok(outbox_sign(signer, VECTOR_ID, VECTOR_TIMESTAMP, VECTOR_BODY, strlen(VECTOR_BODY), again) &&
	   strcmp(first, again) == 0, "a signer keeps nothing of the message before");
	ok(outbox_sign(signer, VECTOR_ID, VECTOR_TIMESTAMP, NULL, 0, again), "an empty body is signed");
	ok(empty != NULL && outbox_sign(empty, VECTOR_ID, VECTOR_TIMESTAMP, "x", 1, again), "an empty key is a key");
	outbox_signer_free(signer);
	outbox_signer_free(empty);
	outbox_signer_free(NULL);
}

/* The value of a header, or NULL; *count: how often it is there.  A text may be several lines. */
static const char *
find(const OutboxRequestHeaders *headers, const char *name, int *count)
{
	static char value[1024 * 1024];
	size_t		size = strlen(name);

	*count = 0;
	for (int i = 0; i < headers->n; i++)
		for (const char *line = headers->lines[i]; line != NULL; line = strchr(line, '\n') == NULL ? NULL : strchr(line, '\n') + 1)
			if (strncmp(line, name, size) == 0 && strncmp(line + size, ": ", 2) == 0)
			{
				snprintf(value, sizeof(value), "%.*s", (int) strcspn(line + size + 2, "\r"), line + size + 2);
				(*count)++;
			}
	return *count == 0 ? NULL : value;
}

static void
has(const OutboxRequestHeaders *headers, const char *name, const char *expected)
{
	int			count;
	const char *value = headers == NULL ? NULL : find(headers, name, &count);

	if (expected == NULL)
		ok(headers != NULL && value == NULL, "no %s", name);
	else
		ok(value != NULL && count == 1 && strcmp(value, expected) == 0, "%s: %s", name, value ? value : "(missing)");
}

static OutboxMessage
plain_message(void)
{
	return (OutboxMessage) {
		.id = ID, .source = "/outbox/shop", .type = "order.paid", .created_at = INT64_C(1614265330123456),
		.body = VECTOR_BODY, .size = strlen(VECTOR_BODY)
	};
}

static void
test_plain(void)
{
	OutboxMessage message = plain_message();
	const char *error = NULL;
	OutboxRequestHeaders *headers = outbox_message_headers(&message, NULL, 0, VECTOR_TIMESTAMP, span, &error);

	has(headers, "webhook-id", ID);
	has(headers, "webhook-timestamp", "1614265330");
	has(headers, "webhook-signature", NULL);
	has(headers, "ce-specversion", "1.0");
	has(headers, "ce-id", ID);
	has(headers, "ce-source", "/outbox/shop");
	has(headers, "ce-type", "order.paid");
	has(headers, "ce-time", "2021-02-25T15:02:10.123456Z");
	has(headers, "ce-partitionkey", NULL);
	has(headers, "Content-Type", NULL);
	has(headers, "ce-datacontenttype", NULL);
	has(headers, "traceparent", NULL);
	has(headers, "ce-traceparent", NULL);
	outbox_message_headers_free(headers);
}

static void
test_full(void)
{
	static const OutboxHeader own[] = {{"X-One", "1"}, {"Authorization", "Bearer s3cret"}, {"X-Empty", ""}};
	OutboxMessage message = plain_message();
	OutboxSigner *signer = vector_signer();
	OutboxSigner *signers[OUTBOX_MAX_SECRETS] = {signer, signer, signer, signer};
	char		signature[OUTBOX_SIGNATURE];
	char		both[2 * OUTBOX_SIGNATURE];
	const char *error = NULL;
	OutboxRequestHeaders *headers;

	message.key = "Euro \xe2\x82\xac \xf0\x9f\x98\x80";
	message.content_type = "application/json";
	message.traceparent = TRACEPARENT;
	message.headers = own;
	message.n_headers = 3;
	headers = outbox_message_headers(&message, signers, 2, VECTOR_TIMESTAMP, span, &error);

	outbox_sign(signer, ID, VECTOR_TIMESTAMP, VECTOR_BODY, strlen(VECTOR_BODY), signature);
	snprintf(both, sizeof(both), "%s %s", signature, signature);
	has(headers, "webhook-signature", both);
	has(headers, "ce-partitionkey", "Euro%20%E2%82%AC%20%F0%9F%98%80");
	has(headers, "Content-Type", "application/json");
	has(headers, "ce-traceparent", TRACEPARENT);
	has(headers, "traceparent", "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01");
	has(headers, "X-One", "1");
	has(headers, "Authorization", "Bearer s3cret");
	has(headers, "X-Empty", "");
	outbox_message_headers_free(headers);

	headers = outbox_message_headers(&message, signers, OUTBOX_MAX_SECRETS, VECTOR_TIMESTAMP, span, &error);
	ok(headers != NULL, "as many signatures as there may be");
	outbox_message_headers_free(headers);
	ok(outbox_message_headers(&message, signers, OUTBOX_MAX_SECRETS + 1, VECTOR_TIMESTAMP, span, &error) == NULL, "and not one more");
	outbox_signer_free(signer);
}

/* What the subscription sends with every request wins over what the event brings. */
static void
test_fixed(void)
{
	static const OutboxHeader own[] = {{"authorization", "Bearer forged"}, {"X-One", "1"}};
	static const OutboxHeader fixed[] = {{"Authorization", "Bearer s3cret"}, {"X-Two", "2"}};
	static const OutboxHeader bad[][1] = {{{"Host", "s3cret"}}, {{"a b", "s3cret"}}, {{"X", "s3cret\r\nHost: evil"}}};
	OutboxMessage message = plain_message();
	const char *error = NULL;
	OutboxRequestHeaders *headers;

	message.headers = own;
	message.n_headers = 2;
	message.fixed = fixed;
	message.n_fixed = 2;
	headers = outbox_message_headers(&message, NULL, 0, VECTOR_TIMESTAMP, span, &error);
	has(headers, "Authorization", "Bearer s3cret");
	has(headers, "authorization", NULL);
	has(headers, "X-One", "1");
	has(headers, "X-Two", "2");
	outbox_message_headers_free(headers);

	message.n_fixed = 1;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
	{
		message.fixed = bad[i];
		error = NULL;
		headers = outbox_message_headers(&message, NULL, 0, VECTOR_TIMESTAMP, span, &error);
		ok(headers == NULL && error != NULL && strstr(error, "s3cret") == NULL, "a subscription's header that may not be sent is refused, and not repeated: %s", error);
		outbox_message_headers_free(headers);
	}
}

typedef struct Encoding
{
	const char *value;
	const char *expected;
} Encoding;

static void
test_encoding(void)
{
	static const Encoding cases[] = {
		{"plain", "plain"},
		{"", ""},
		{" ", "%20"},
		{"\"quoted\"", "%22quoted%22"},
		{"100%", "100%25"},
		{"%41", "%2541"},
		{"!~#$&'()*+,/:;=?@[]", "!~#$&'()*+,/:;=?@[]"},
		{"\xff", "%FF"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		OutboxMessage message = plain_message();
		const char *error;
		OutboxRequestHeaders *headers;

		message.key = cases[i].value;
		headers = outbox_message_headers(&message, NULL, 0, 0, span, &error);
		has(headers, "ce-partitionkey", cases[i].expected);
		outbox_message_headers_free(headers);
	}
}

/* Every attribute at three times its size: the block is as large as it has to be. */
static void
test_size(void)
{
	OutboxMessage message = plain_message();
	char	   *large = memset(malloc(100001), 0xe9, 100000);
	const char *error = NULL;
	OutboxRequestHeaders *headers;
	int			count;
	const char *value;

	large[100000] = '\0';
	message.key = message.type = message.source = large;
	message.created_at = INT64_C(253402300799999999);
	headers = outbox_message_headers(&message, NULL, 0, INT64_MIN, span, &error);
	value = headers == NULL ? NULL : find(headers, "ce-type", &count);
	ok(value != NULL && strlen(value) == 300000, "long attributes fit");
	has(headers, "ce-time", "9999-12-31T23:59:59.999999Z");
	outbox_message_headers_free(headers);
	free(large);
}

static void
test_times(void)
{
	static const struct
	{
		int64_t		at;
		const char *expected;
	}			cases[] = {
		{0, "1970-01-01T00:00:00.000000Z"},
		{-1, "1969-12-31T23:59:59.999999Z"},
		{INT64_C(951782400000001), "2000-02-29T00:00:00.000001Z"},
		{INT64_C(4107542399000000), "2100-02-28T23:59:59.000000Z"},
		{INT64_C(4107542400000000), "2100-03-01T00:00:00.000000Z"},
		{INT64_C(-62167219200000000), "0000-01-01T00:00:00.000000Z"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		OutboxMessage message = plain_message();
		const char *error;
		OutboxRequestHeaders *headers;

		message.created_at = cases[i].at;
		headers = outbox_message_headers(&message, NULL, 0, 0, span, &error);
		has(headers, "ce-time", cases[i].expected);
		outbox_message_headers_free(headers);
	}
}

static void
refused(const OutboxMessage *message, const char *what)
{
	const char *error = NULL;
	OutboxRequestHeaders *headers = outbox_message_headers(message, NULL, 0, 0, span, &error);

	ok(headers == NULL && error != NULL, "refused: %s (%s)", what, error ? error : "no reason");
	outbox_message_headers_free(headers);
}

static void
test_refusals(void)
{
	static const OutboxHeader bad[] = {
		{"webhook-id", "forged"}, {"Content-Length", "0"}, {"X Y", "1"}, {"X", "a\r\nY: b"}, {"X", " a"}, {"", "x"}
	};
	OutboxMessage message = plain_message();

	message.n_headers = 1;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
	{
		message.headers = &bad[i];
		refused(&message, bad[i].name);
	}
	message = plain_message();
	message.key = "a\nb";
	refused(&message, "a control character in the key");
	message = plain_message();
	message.content_type = "text/plain\r\nX: y";
	refused(&message, "CR LF in the content type");
	message = plain_message();
	message.created_at = INT64_MAX;
	refused(&message, "a year of more than four digits");
	message.created_at = INT64_MIN;
	refused(&message, "a year before the first");
}

static void
test_traceparent(void)
{
	static const unsigned char zero[8];
	OutboxMessage message = plain_message();
	const char *error;
	OutboxRequestHeaders *headers;

	message.traceparent = "00-nonsense";
	headers = outbox_message_headers(&message, NULL, 0, 0, span, &error);
	has(headers, "traceparent", NULL);
	has(headers, "ce-traceparent", NULL);
	outbox_message_headers_free(headers);

	message.traceparent = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-later";
	headers = outbox_message_headers(&message, NULL, 0, 0, zero, &error);
	has(headers, "ce-traceparent", message.traceparent);
	has(headers, "traceparent", "00-0af7651916cd43dd8448eb211c80319c-0000000000000001-00");
	outbox_message_headers_free(headers);
}

/* What the body says is in no header; what a request is, is. */
static void
test_formats(void)
{
	static const OutboxHeader own[] = {{"X-One", "1"}};
	static const char *const types[] = {
		[OUTBOX_FORMAT_STRUCTURED] = "application/cloudevents+json; charset=utf-8",
		[OUTBOX_FORMAT_BATCH] = "application/cloudevents-batch+json; charset=utf-8"
	};

	for (int format = OUTBOX_FORMAT_STRUCTURED; format <= OUTBOX_FORMAT_BATCH; format++)
	{
		OutboxMessage message = {
			.format = format, .id = ID, .traceparent = TRACEPARENT, .headers = own, .n_headers = 1, .body = VECTOR_BODY, .size = strlen(VECTOR_BODY)
		};
		OutboxSigner *signer = vector_signer();
		char		signature[OUTBOX_SIGNATURE];
		const char *error;
		OutboxRequestHeaders *headers = outbox_message_headers(&message, &signer, 1, VECTOR_TIMESTAMP, span, &error);

		outbox_sign(signer, ID, VECTOR_TIMESTAMP, VECTOR_BODY, strlen(VECTOR_BODY), signature);
		has(headers, "webhook-id", ID);
		has(headers, "webhook-timestamp", "1614265330");
		has(headers, "webhook-signature", signature);
		has(headers, "Content-Type", types[format]);
		has(headers, "X-One", "1");
		has(headers, "ce-id", NULL);
		has(headers, "ce-specversion", NULL);
		has(headers, "ce-traceparent", NULL);
		has(headers, "traceparent", format == OUTBOX_FORMAT_BATCH ? NULL : "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01");
		outbox_message_headers_free(headers);
		outbox_signer_free(signer);
	}
}

/* What is no fault of the message's has no text. */
static void
test_want(void)
{
	OutboxMessage message = plain_message();
	OutboxSigner *signer = vector_signer();
	OutboxRequestHeaders *headers;
	const char *error;

	for (int i = 0; i < 2; i++)
	{
		no_memory = i == 0;
		no_mac = i == 1;
		error = "unset";
		headers = outbox_message_headers(&message, &signer, 1, VECTOR_TIMESTAMP, span, &error);
		no_memory = no_mac = false;
		ok(headers == NULL && error == NULL, "%s", i == 0 ? "no memory" : "no signature");
		outbox_message_headers_free(headers);
	}
	headers = outbox_message_headers(&message, &signer, 1, VECTOR_TIMESTAMP, span, &error);
	ok(headers != NULL, "afterwards all is well");
	outbox_message_headers_free(headers);
	outbox_signer_free(signer);
}

int
main(void)
{
	test_signature();
	test_plain();
	test_full();
	test_fixed();
	test_encoding();
	test_size();
	test_times();
	test_refusals();
	test_traceparent();
	test_formats();
	test_want();
	return done_testing();
}
