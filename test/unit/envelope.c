/*
 * envelope: what an event looks like in CloudEvents' JSON format, and which id an array of them has.
 */
#include "delivery/envelope.h"

#include <stdlib.h>
#include <string.h>

#include "tap.h"

#define ID "0190b6a0-0000-7000-8000-000000000000"
#define OTHER "0190b6a0-0000-7000-8000-000000000001"
#define TRACEPARENT "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
#define HEAD "{\"specversion\":\"1.0\",\"id\":\"" ID "\",\"source\":\"/outbox/shop\",\"type\":\"order.paid\",\"time\":\"2021-02-25T15:02:10.123456Z\""
#define PAIR_ID "64f6cf04-ab81-8f1a-a136-c269ebaf0d45"
#define NO_LIMIT ((size_t) 1 << 40)

static OutboxEnvelope *envelope;

static OutboxMessage
json_message(const char *payload)
{
	return (OutboxMessage) {
		.id = ID, .source = "/outbox/shop", .type = "order.paid", .created_at = INT64_C(1614265330123456),
		.content_type = "application/json", .body = payload, .size = strlen(payload), .json = true, .utf8 = true
	};
}

static OutboxMessage
raw_message(const char *content_type, const void *body, size_t size)
{
	OutboxMessage message = json_message("");

	message.content_type = content_type;
	message.body = body;
	message.size = size;
	message.json = message.utf8 = false;
	return message;
}

/* The body of these events as one request, NUL-terminated, malloc'd; NULL: not one of them could be added. */
static char *
body_of(const OutboxMessage *messages, int n, bool array, size_t limit, int *added, char id[OUTBOX_ID_TEXT])
{
	const char *error;
	size_t		size;
	char	   *body;

	outbox_envelope_begin(envelope, array);
	for (*added = 0; *added < n; (*added)++)
		if (outbox_envelope_add(envelope, &messages[*added], limit, &error) != OUTBOX_FILLED)
			break;
	if (*added == 0)
		return NULL;
	body = outbox_envelope_end(envelope, &size, id);
	body = realloc(body, size + 1);
	body[size] = '\0';
	return body;
}

static void
is_body(const OutboxMessage *message, const char *expected, const char *what)
{
	char		id[OUTBOX_ID_TEXT];
	int			added;
	char	   *body = body_of(message, 1, false, NO_LIMIT, &added, id);

	ok(body != NULL && strcmp(body, expected) == 0 && strcmp(id, message->id) == 0, "%s: %s", what, body ? body : "(none)");
	free(body);
}

static void
test_structured(void)
{
	OutboxMessage message = json_message("{\"a\": [1, \"\\u0000\xc3\xa9\"]}");

	is_body(&message, HEAD ",\"datacontenttype\":\"application/json\",\"data\":{\"a\": [1, \"\\u0000\xc3\xa9\"]}}", "a payload is its own bytes");
	message = json_message("null");
	message.key = "Euro \xe2\x82\xac \"\\";
	message.traceparent = TRACEPARENT;
	is_body(&message, HEAD ",\"partitionkey\":\"Euro \xe2\x82\xac \\\"\\\\\",\"traceparent\":\"" TRACEPARENT "\",\"datacontenttype\":\"application/json\",\"data\":null}",
			"key and trace; a quote and a backslash are escaped");
	message.key = NULL;
	message.traceparent = "00-nonsense";
	is_body(&message, HEAD ",\"datacontenttype\":\"application/json\",\"data\":null}", "an invalid trace is dropped");
	message.traceparent = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-\xff";
	is_body(&message, HEAD ",\"datacontenttype\":\"application/json\",\"data\":null}", "so is one that is not UTF-8");
	message = raw_message(NULL, NULL, 0);
	is_body(&message, HEAD "}", "no data");
}

static void
test_data(void)
{
	OutboxMessage message;

	message = raw_message("text/plain", "a\"\\\n\t\x01\x7f/\xc3\xa9", 10);
	is_body(&message, HEAD ",\"datacontenttype\":\"text/plain\",\"data\":\"a\\\"\\\\\\n\\t\\u0001\\u007f/\xc3\xa9\"}", "text is a string");
	message = raw_message("text/plain", "", 0);
	is_body(&message, HEAD ",\"datacontenttype\":\"text/plain\",\"data\":\"\"}", "empty text");
	message = raw_message("text/plain", "\xff", 1);
	is_body(&message, HEAD ",\"datacontenttype\":\"text/plain\",\"data_base64\":\"/w==\"}", "text that is not UTF-8 is bytes");
	message = raw_message("text/plain; charset=ISO-8859-1", "x", 1);
	is_body(&message, HEAD ",\"datacontenttype\":\"text/plain; charset=ISO-8859-1\",\"data_base64\":\"eA==\"}", "so is text in another charset");
	message = raw_message("TEXT/csv; header=present; Charset=\"UTF-8\"", "x", 1);
	is_body(&message, HEAD ",\"datacontenttype\":\"TEXT/csv; header=present; Charset=\\\"UTF-8\\\"\",\"data\":\"x\"}", "UTF-8 by name, in any case, quoted");
	message = raw_message("application/atom+xml", "<much wow=\"xml\"/>", 17);
	is_body(&message, HEAD ",\"datacontenttype\":\"application/atom+xml\",\"data\":\"<much wow=\\\"xml\\\"/>\"}", "XML is text");
	message = raw_message("application/pdf", "\0\1\2\3", 4);
	is_body(&message, HEAD ",\"datacontenttype\":\"application/pdf\",\"data_base64\":\"AAECAw==\"}", "bytes");
	message = raw_message("application/json", "{\"a\":1}", 7);
	is_body(&message, HEAD ",\"datacontenttype\":\"application/json\",\"data_base64\":\"eyJhIjoxfQ==\"}", "bytes that claim to be JSON stay bytes");
	message = raw_message(NULL, "abc", 3);
	is_body(&message, HEAD ",\"data_base64\":\"YWJj\"}", "bytes without a type");
}

static const struct
{
	const char *text;
	bool		valid;
}			utf8_cases[] = {
	{"\xc2\x80", true}, {"\xdf\xbf", true}, {"\xe0\xa0\x80", true}, {"\xed\x9f\xbf", true}, {"\xee\x80\x80", true},
	{"\xf0\x90\x80\x80", true}, {"\xf4\x8f\xbf\xbf", true},
	{"\x80", false}, {"\xc0\xa0", false}, {"\xc1\xbf", false}, {"\xc2", false}, {"\xe0\x9f\xbf", false}, {"\xed\xa0\x80", false},
	{"\xe2\x82", false}, {"\xf0\x8f\xbf\xbf", false}, {"\xf4\x90\x80\x80", false}, {"\xf5\x80\x80\x80", false}, {"\xe2\x82\x41", false},
};

static void
refused(const OutboxMessage *message, const char *what)
{
	const char *error = NULL;
	OutboxFilling filling;

	outbox_envelope_begin(envelope, true);
	filling = outbox_envelope_add(envelope, message, NO_LIMIT, &error);
	ok(filling == OUTBOX_UNFIT && error != NULL, "refused: %s (%s)", what, error ? error : "no reason");
}

static void
test_refusals(void)
{
	OutboxMessage message;
	int			wrong = 0;

	for (size_t i = 0; i < sizeof(utf8_cases) / sizeof(utf8_cases[0]); i++)
	{
		const char *error;

		message = json_message(utf8_cases[i].text);
		message.utf8 = false;
		outbox_envelope_begin(envelope, false);
		if ((outbox_envelope_add(envelope, &message, NO_LIMIT, &error) == OUTBOX_FILLED) != utf8_cases[i].valid)
			wrong++;
	}
	ok(wrong == 0, "what is UTF-8 and what is not");
	message = json_message("\"\xe9\"");
	message.utf8 = false;
	refused(&message, "a payload that is not UTF-8");
	message = json_message("1");
	message.key = "a\nb";
	refused(&message, "a control character in the key");
	message.key = "\xe9";
	refused(&message, "a key that is not UTF-8");
	message = json_message("1");
	message.content_type = "text/\xe9";
	refused(&message, "a content type that is not UTF-8");
	message = json_message("1");
	message.created_at = INT64_MAX;
	refused(&message, "a year of more than four digits");
}

static void
test_batch(void)
{
	static const char *const expected = "[" HEAD ",\"datacontenttype\":\"application/json\",\"data\":1}"
		",{\"specversion\":\"1.0\",\"id\":\"" OTHER "\",\"source\":\"/outbox/shop\",\"type\":\"order.paid\",\"time\":\"2021-02-25T15:02:10.123456Z\""
		",\"datacontenttype\":\"application/json\",\"data\":2}]";
	OutboxMessage messages[3] = {json_message("1"), json_message("2"), json_message("3")};
	char		id[OUTBOX_ID_TEXT];
	char		again[OUTBOX_ID_TEXT];
	const char *error;
	size_t		size;
	int			added;
	char	   *body;

	memcpy(messages[1].id, OTHER, sizeof(OTHER));
	body = body_of(messages, 2, true, NO_LIMIT, &added, id);
	ok(body != NULL && strcmp(body, expected) == 0, "an array: %s", body ? body : "(none)");
	free(body);
	/* computed elsewhere: printf '%s\n' ID OTHER | sha256sum */
	ok(strcmp(id, PAIR_ID) == 0, "its id: %s", id);

	free(body_of(messages, 2, true, strlen(expected), &added, again));
	ok(added == 2 && strcmp(id, again) == 0, "as large as it may be; the same members are the same id");
	free(body_of(messages, 2, true, strlen(expected) - 1, &added, again));
	ok(added == 1 && strcmp(id, again) != 0, "one byte less is one event less, and another id");
	ok(strcmp(again, ID) != 0, "a batch of one is not its event");
	free(body_of(messages + 1, 1, true, 1, &added, again));
	ok(added == 1, "one event is never too large");
	ok(strlen(again) == 36 && again[14] == '8' && strchr("89ab", again[19]) != NULL, "a UUID of version 8: %s", again);

	messages[2] = messages[0];
	free(body_of(messages + 1, 2, true, NO_LIMIT, &added, again));
	ok(added == 2 && strcmp(id, again) != 0, "another order is another id");

	/* what does not fit, or cannot be written, leaves no trace */
	outbox_envelope_begin(envelope, true);
	outbox_envelope_add(envelope, &messages[0], NO_LIMIT, &error);
	messages[2].key = "\x01";
	ok(outbox_envelope_add(envelope, &messages[2], NO_LIMIT, &error) == OUTBOX_UNFIT, "an event that cannot be written");
	ok(outbox_envelope_add(envelope, &messages[1], 10, &error) == OUTBOX_FULL, "and one too many");
	outbox_envelope_add(envelope, &messages[1], NO_LIMIT, &error);
	body = outbox_envelope_end(envelope, &size, again);
	ok(size == strlen(expected) && memcmp(body, expected, size) == 0 && strcmp(id, again) == 0, "leave no trace");
	free(body);
}

/* Every attribute and the text at six times its size: what is reserved is enough. */
static void
test_size(void)
{
	char	   *large = memset(malloc(100001), '"', 100000);
	char	   *controls = memset(malloc(1000000), 1, 1000000);
	OutboxMessage message = raw_message("text/plain", controls, 1000000);
	char		id[OUTBOX_ID_TEXT];
	int			added;
	char	   *body;

	large[100000] = '\0';
	message.source = message.type = message.key = large;
	body = body_of(&message, 1, true, NO_LIMIT, &added, id);
	ok(body != NULL && strlen(body) > 6000000 + 600000 && body[strlen(body) - 1] == ']', "large events fit");
	free(body);
	free(large);
	free(controls);
}

int
main(void)
{
	envelope = outbox_envelope_create();
	test_structured();
	test_data();
	test_refusals();
	test_batch();
	test_size();
	outbox_envelope_free(envelope);
	outbox_envelope_free(NULL);
	return done_testing();
}
