/*
 * verdict: the table of decisions, the schedule of delays, and Retry-After in all its forms.
 */
#include "delivery/verdict.h"

#include <math.h>
#include <string.h>

#include "tap.h"

#define SECOND INT64_C(1000000)
#define HOUR (3600 * SECOND)
#define DAY (24 * HOUR)
#define NOON (INT64_C(800000000) * SECOND)	/* some moment */

static const int fatal[] = {400, 422};

/* the defaults of a subscription, but for the fatal statuses */
static const OutboxRetryPolicy defaults = {
	.base = 5 * SECOND, .factor = 4, .max = 4 * HOUR, .jitter = 0.2,
	.max_attempts = 25, .give_up_after = 3 * DAY, .fatal_statuses = fatal, .n_fatal_statuses = 2,
};

typedef struct Case
{
	const char *what;
	OutboxOutcome outcome;
	int			status;
	int			attempts;
	int64_t		age;			/* since the first attempt */
	int64_t		retry_after;
	OutboxDecision decision;
	int64_t		wait;			/* RETRY; the dice show 0.5, which is no jitter */
	const char *reason;			/* DEAD */
} Case;

static const Case cases[] = {
	{"2xx is delivered", OUTBOX_DELIVERED, 204, 1, 0, -1, OUTBOX_DONE, 0, NULL},
	{"2xx is delivered at the last attempt too", OUTBOX_DELIVERED, 200, 25, 4 * DAY, -1, OUTBOX_DONE, 0, NULL},
	{"410 disables", OUTBOX_GONE, 410, 1, 0, -1, OUTBOX_DISABLE, 0, NULL},
	{"410 disables at the last attempt too", OUTBOX_GONE, 410, 25, 4 * DAY, -1, OUTBOX_DISABLE, 0, NULL},
	{"the first failure waits base", OUTBOX_HTTP_5XX, 503, 1, 0, -1, OUTBOX_RETRY, 5 * SECOND, NULL},
	{"the second base * factor", OUTBOX_TIMEOUT, 0, 2, 0, -1, OUTBOX_RETRY, 20 * SECOND, NULL},
	{"the third base * factor^2", OUTBOX_DNS, 0, 3, 0, -1, OUTBOX_RETRY, 80 * SECOND, NULL},
	{"the tenth max", OUTBOX_CONNECT, 0, 10, 0, -1, OUTBOX_RETRY, 4 * HOUR, NULL},
	{"TLS is retried", OUTBOX_TLS, 0, 1, 0, -1, OUTBOX_RETRY, 5 * SECOND, NULL},
	{"a broken answer is retried", OUTBOX_PROTOCOL, 0, 1, 0, -1, OUTBOX_RETRY, 5 * SECOND, NULL},
	{"a redirect is a failure", OUTBOX_HTTP_3XX, 302, 1, 0, -1, OUTBOX_RETRY, 5 * SECOND, NULL},
	{"404 is retried like the rest", OUTBOX_HTTP_4XX, 404, 1, 0, -1, OUTBOX_RETRY, 5 * SECOND, NULL},
	{"a fatal status is dead", OUTBOX_HTTP_4XX, 422, 1, 0, -1, OUTBOX_DEAD, 0, "fatal_status"},
	{"a blocked address is dead", OUTBOX_BLOCKED, 0, 1, 0, -1, OUTBOX_DEAD, 0, "blocked_address"},
	{"a bad request is dead", OUTBOX_BAD_REQUEST, 0, 1, 0, -1, OUTBOX_DEAD, 0, "bad_request"},
	{"an internal fault is dead", OUTBOX_INTERNAL, 0, 1, 0, -1, OUTBOX_DEAD, 0, "internal"},
	{"one attempt is left", OUTBOX_HTTP_5XX, 500, 24, 0, -1, OUTBOX_RETRY, 4 * HOUR, NULL},
	{"the last attempt is dead", OUTBOX_HTTP_5XX, 500, 25, 0, -1, OUTBOX_DEAD, 0, "max_attempts"},
	{"beyond the last is dead", OUTBOX_HTTP_5XX, 500, 26, 0, -1, OUTBOX_DEAD, 0, "max_attempts"},
	{"too old is dead", OUTBOX_HTTP_5XX, 500, 2, 3 * DAY, -1, OUTBOX_DEAD, 0, "give_up_after"},
	{"dead when the next attempt would be too late", OUTBOX_HTTP_5XX, 500, 12, 3 * DAY - 4 * HOUR, -1, OUTBOX_DEAD, 0, "give_up_after"},
	{"not when it is just in time", OUTBOX_HTTP_5XX, 500, 12, 3 * DAY - 4 * HOUR - 1, -1, OUTBOX_RETRY, 4 * HOUR, NULL},
	{"Retry-After lengthens the wait", OUTBOX_HTTP_5XX, 503, 1, 0, 60 * SECOND, OUTBOX_RETRY, 60 * SECOND, NULL},
	{"Retry-After does not shorten it", OUTBOX_HTTP_4XX, 429, 3, 0, SECOND, OUTBOX_RETRY, 80 * SECOND, NULL},
	{"Retry-After: 0 changes nothing", OUTBOX_HTTP_4XX, 429, 1, 0, 0, OUTBOX_RETRY, 5 * SECOND, NULL},
	{"Retry-After is bounded by max", OUTBOX_HTTP_5XX, 503, 1, 0, INT64_MAX, OUTBOX_RETRY, 4 * HOUR, NULL},
};

static void
test_case(const Case *c)
{
	OutboxVerdict v = outbox_verdict(c->outcome, c->status, c->attempts, NOON - c->age, NOON, c->retry_after, 0.5, &defaults);
	bool		good = v.decision == c->decision;

	if (good && v.decision == OUTBOX_RETRY)
		good = v.at - NOON == c->wait;
	if (good && v.decision == OUTBOX_DEAD)
		good = strcmp(v.reason, c->reason) == 0;
	ok(good, "%s", c->what);
}

static int64_t
wait_with(OutboxRetryPolicy policy, int attempts, double dice)
{
	OutboxVerdict v = outbox_verdict(OUTBOX_HTTP_5XX, 500, attempts, NOON, NOON, -1, dice, &policy);

	return v.decision == OUTBOX_RETRY ? v.at - NOON : -1;
}

static void
test_jitter(void)
{
	OutboxRetryPolicy policy = defaults;

	ok(wait_with(policy, 1, 0.0) == 4 * SECOND, "the lowest dice: 20 %% less");
	ok(wait_with(policy, 1, 0.999999999) > 5999999 - 10 && wait_with(policy, 1, 0.999999999) <= 6 * SECOND, "the highest: 20 %% more");
	ok(wait_with(policy, 12, 0.999) == 4 * HOUR, "jitter does not exceed max");
	policy.jitter = 0;
	ok(wait_with(policy, 1, 0.0) == wait_with(policy, 1, 0.9), "no jitter, no dice");
	policy.jitter = 1;
	ok(wait_with(policy, 1, 0.0) == 0, "full jitter reaches zero, and not below");
}

static void
test_absurd_policies(void)
{
	OutboxRetryPolicy policy = {.base = INT64_MAX, .factor = 1e308, .max = INT64_MAX, .jitter = 1, .max_attempts = 2147483647};
	OutboxVerdict v;

	v = outbox_verdict(OUTBOX_HTTP_5XX, 500, 2147483646, INT64_MIN, INT64_MAX - 1, INT64_MAX, 0.99, &policy);
	ok(v.decision == OUTBOX_RETRY && v.at == INT64_MAX, "the end of time does not overflow");
	policy.give_up_after = INT64_MAX;
	v = outbox_verdict(OUTBOX_HTTP_5XX, 500, 1, INT64_MAX - 5, INT64_MAX - 1, -1, 0.0, &policy);
	ok(v.decision == OUTBOX_RETRY || v.decision == OUTBOX_DEAD, "nor does the age");
	policy = (OutboxRetryPolicy) {.base = SECOND, .factor = NAN, .max = HOUR, .jitter = NAN, .max_attempts = 9};
	ok(wait_with(policy, 3, 0.5) >= 0 && wait_with(policy, 3, 0.5) <= HOUR, "NaN is a wait within bounds");
	policy = (OutboxRetryPolicy) {.base = SECOND, .factor = 0.5, .max = HOUR, .max_attempts = 2147483647};
	ok(wait_with(policy, 2147483646, 0.5) == 0, "a shrinking delay ends at zero, quickly");
	policy = (OutboxRetryPolicy) {.base = SECOND, .factor = 1, .max = HOUR, .max_attempts = 2147483647};
	ok(wait_with(policy, 2147483646, 0.5) == SECOND, "a constant delay stays, quickly");
	policy = (OutboxRetryPolicy) {.base = 0, .factor = 4, .max = HOUR, .max_attempts = 2147483647};
	ok(wait_with(policy, 2147483646, 0.5) == 0, "no base, no delay");
}

/* 1994-11-06 08:49:37 UTC, the date of RFC 9110's examples */
#define EXAMPLE INT64_C(784111777)

typedef struct RetryAfter
{
	const char *value;
	int64_t		now;
	int64_t		seconds;		/* -1: not understood */
} RetryAfter;

static const RetryAfter retry_afters[] = {
	{NULL, 0, -1},
	{"", 0, -1},
	{"0", 0, 0},
	{"5", 0, 5},
	{"0000120", 0, 120},
	{"315360000", 0, 315360000},
	{"-1", 0, -1},
	{"+5", 0, -1},
	{"1.5", 0, -1},
	{" 5", 0, -1},
	{"5 ", 0, -1},
	{"0x10", 0, -1},
	{"soon", 0, -1},
	{"5, 6", 0, -1},
	{"Sun, 06 Nov 1994 08:49:37 GMT", EXAMPLE - 90, 90},
	{"Sunday, 06-Nov-94 08:49:37 GMT", EXAMPLE - 90, 90},
	{"Sun Nov  6 08:49:37 1994", EXAMPLE - 90, 90},
	{"Sun Nov 16 08:49:37 1994", EXAMPLE, 10 * 86400},
	{"Sun, 06 Nov 1994 08:49:37 GMT", EXAMPLE, 0},
	{"Sun, 06 Nov 1994 08:49:37 GMT", EXAMPLE + 1, -1},
	{"Thu, 29 Feb 2024 00:00:00 GMT", INT64_C(1709164800) - 1, 1},
	{"Fri, 01 Mar 2024 00:00:00 GMT", INT64_C(1709164800), 86400},
	{"Sat, 31 Dec 2016 23:59:60 GMT", INT64_C(1483228799), 1},
	{"Mon, 01 Jan 2001 00:00:00 GMT", INT64_C(978307200) - 7, 7},
	{"Tue, 01 Jan 2030 00:00:00 GMT", INT64_C(1893456000) - 1, 1},
	{"Saturday, 06-Nov-94 08:49:37 GMT", INT64_C(1700000000), -1},	/* 1994, not 2094 */
	{"Saturday, 01-Jan-50 00:00:00 GMT", INT64_C(1700000000), INT64_C(2524608000) - 1700000000},	/* 2050 */
	{"Thu, 29 Feb 2023 00:00:00 GMT", 0, -1},
	{"Thu, 30 Feb 2024 00:00:00 GMT", 0, -1},
	{"Thu, 00 Mar 2024 00:00:00 GMT", 0, -1},
	{"Thu, 01 Mar 2024 24:00:00 GMT", 0, -1},
	{"Thu, 01 Mar 2024 00:60:00 GMT", 0, -1},
	{"Thu, 01 Mar 2024 00:00:61 GMT", 0, -1},
	{"Sun, 06 nov 1994 08:49:37 GMT", 0, -1},
	{"Sun, 06 Nov 1994 08:49:37 UTC", 0, -1},
	{"Sun, 06 Nov 1994 08:49:37 GMT ", 0, -1},
	{"Sun, 6 Nov 1994 08:49:37 GMT", 0, -1},
	{"Sun, 06 Nov 1994 08:49:37", 0, -1},
	{"06 Nov 1994 08:49:37 GMT", 0, -1},
	{"Son, 06 Nov 1994 08:49:37 GMT", 0, -1},
	{"1994-11-06T08:49:37Z", 0, -1},
	{"Sun,", 0, -1},
};

static void
test_retry_after(const RetryAfter *c)
{
	int64_t		expected = c->seconds < 0 ? -1 : c->seconds * SECOND;

	ok(outbox_retry_after(c->value, c->now) == expected, "Retry-After: %s", c->value ? c->value : "(absent)");
}

static void
test_retry_after_saturates(void)
{
	ok(outbox_retry_after("99999999999999999999999999999999", 0) == INT64_MAX, "Retry-After: thirty-two nines saturate");
	ok(outbox_retry_after("9223372036854775807", 0) == INT64_MAX, "Retry-After: INT64_MAX seconds saturate");
	ok(outbox_retry_after("Fri, 31 Dec 9999 23:59:59 GMT", INT64_MIN) > 0, "Retry-After: an odd clock does not overflow");
}

int
main(void)
{
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		test_case(&cases[i]);
	test_jitter();
	test_absurd_policies();
	for (size_t i = 0; i < sizeof(retry_afters) / sizeof(retry_afters[0]); i++)
		test_retry_after(&retry_afters[i]);
	test_retry_after_saturates();
	ok(strcmp(outbox_outcome_name(OUTBOX_DELIVERED), "delivered") == 0 && strcmp(outbox_outcome_name(OUTBOX_HTTP_3XX), "http_3xx") == 0 &&
	   strcmp(outbox_outcome_name(OUTBOX_INTERNAL), "internal") == 0, "outcomes have names");
	return done_testing();
}
