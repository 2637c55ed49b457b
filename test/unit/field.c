/*
 * field: names and values that may go on the wire, and those that must not.
 */
#include "field.h"

#include <stdlib.h>
#include <string.h>

#include "tap.h"

typedef struct Case
{
	const char *text;
	size_t		size;
	bool		good;
	const char *what;
} Case;

#define TEXT(literal) (literal), sizeof(literal) - 1

static const Case names[] = {
	{TEXT("X-Trace"), true, "a usual name"},
	{TEXT("!#$%&'*+-.^_`|~09azAZ"), true, "every kind of tchar"},
	{TEXT(""), false, "an empty name"},
	{TEXT("X:Y"), false, "a colon"},
	{TEXT("X Y"), false, "a space"},
	{TEXT("X "), false, "a trailing space"},
	{TEXT("X\r"), false, "CR"},
	{TEXT("X\nY"), false, "LF"},
	{TEXT("X\0Y"), false, "NUL"},
	{TEXT("X\x7f"), false, "DEL"},
	{TEXT("Gr\xc3\xb6\xc3\x9f" "e"), false, "non-ASCII"},
	{TEXT("(x)"), false, "parentheses"},
	{TEXT("x/y"), false, "a slash"},
	{TEXT("x\"y"), false, "a double quote"},
};

static const Case values[] = {
	{TEXT(""), true, "an empty value"},
	{TEXT("a b\tc"), true, "inner space and tab"},
	{TEXT("Gr\xc3\xb6\xc3\x9f" "e"), true, "obs-text"},
	{TEXT(" a"), false, "leading space"},
	{TEXT("a "), false, "trailing space"},
	{TEXT("\ta"), false, "leading tab"},
	{TEXT("a\t"), false, "trailing tab"},
	{TEXT("a\r\nX: y"), false, "CR LF: another header"},
	{TEXT("a\r\n b"), false, "obs-fold"},
	{TEXT("a\rb"), false, "a bare CR"},
	{TEXT("a\nb"), false, "a bare LF"},
	{TEXT("a\0b"), false, "NUL"},
	{TEXT("a\x01" "b"), false, "another control"},
	{TEXT("a\x7f" "b"), false, "DEL"},
};

static const Case reserved[] = {
	{TEXT("webhook-id"), true, "webhook-id"},
	{TEXT("WebHook-Signature"), true, "WebHook-Signature"},
	{TEXT("webhook-anything"), true, "webhook-anything"},
	{TEXT("CE-Type"), true, "CE-Type"},
	{TEXT("Host"), true, "Host"},
	{TEXT("content-length"), true, "content-length"},
	{TEXT("Content-Type"), true, "Content-Type"},
	{TEXT("Transfer-Encoding"), true, "Transfer-Encoding"},
	{TEXT("connection"), true, "connection"},
	{TEXT("traceparent"), true, "traceparent"},
	{TEXT("Expect"), true, "Expect"},
	{TEXT("Proxy-Authorization"), true, "Proxy-Authorization"},
	{TEXT("Authorization"), false, "Authorization"},
	{TEXT("X-Webhook-Id"), false, "X-Webhook-Id"},
	{TEXT("hostname"), false, "hostname"},
	{TEXT("cell"), false, "cell"},
	{TEXT("tracestate"), false, "tracestate"},
	{TEXT("Te-st"), false, "Te-st"},
};

#define TRACE "0af7651916cd43dd8448eb211c80319c"
#define SPAN "b7ad6b7169203331"

static const Case traceparents[] = {
	{TEXT("00-" TRACE "-" SPAN "-01"), true, "the specification's example"},
	{TEXT("00-" TRACE "-" SPAN "-ff"), true, "unknown flags"},
	{TEXT("cc-" TRACE "-" SPAN "-01"), true, "a later version"},
	{TEXT("cc-" TRACE "-" SPAN "-01-what-the-future-holds"), true, "a later version with more fields"},
	{TEXT("cc-" TRACE "-" SPAN "-01.more"), false, "a later version, more without dash"},
	{TEXT("cc-" TRACE "-" SPAN "-01-\r\nX: y"), false, "a later version with CR LF"},
	{TEXT("00-" TRACE "-" SPAN "-01-more"), false, "version 00 with more fields"},
	{TEXT("ff-" TRACE "-" SPAN "-01"), false, "version ff"},
	{TEXT("00-00000000000000000000000000000000-" SPAN "-01"), false, "a zero trace id"},
	{TEXT("00-" TRACE "-0000000000000000-01"), false, "a zero parent id"},
	{TEXT("00-0AF7651916CD43DD8448EB211C80319C-" SPAN "-01"), false, "upper case"},
	{TEXT("00-" TRACE "-" SPAN "-0"), false, "too short"},
	{TEXT("00-" TRACE "_" SPAN "-01"), false, "a wrong separator"},
	{TEXT("00-" TRACE "-" SPAN "-0g"), false, "no hexadecimal"},
	{TEXT(""), false, "nothing"},
};

typedef bool (*Judge) (const char *text, size_t size);

static void
run(const char *subject, Judge judge, const Case *cases, size_t n)
{
	for (size_t i = 0; i < n; i++)
	{
		/* a copy without NUL behind it: a sanitizer sees a read past the end */
		char	   *exact = malloc(cases[i].size + (cases[i].size == 0));

		memcpy(exact, cases[i].text, cases[i].size);
		ok(judge(exact, cases[i].size) == cases[i].good, "%s %s: %s", subject, cases[i].good ? "accepts" : "refuses", cases[i].what);
		free(exact);
	}
}

#define RUN(subject, judge, cases) run((subject), (judge), (cases), sizeof(cases) / sizeof((cases)[0]))

/* The longest that is good, and one more. */
static void
test_limit(const char *subject, Judge judge, size_t longest)
{
	char	   *text = memset(malloc(longest + 1), 'x', longest + 1);

	ok(judge(text, longest), "%s accepts %zu bytes", subject, longest);
	ok(!judge(text, longest + 1), "%s refuses %zu bytes", subject, longest + 1);
	free(text);
}

int
main(void)
{
	RUN("name", outbox_field_name_valid, names);
	test_limit("name", outbox_field_name_valid, 255);
	RUN("value", outbox_field_value_valid, values);
	test_limit("value", outbox_field_value_valid, 8192);
	RUN("reserved", outbox_field_name_reserved, reserved);
	RUN("traceparent", outbox_traceparent_valid, traceparents);
	return done_testing();
}
