/*
 * breaker: what outcomes say about an endpoint, when the breaker opens, probes and closes, the token bucket, and nothing but failures.
 */
#include "delivery/breaker.h"

#include "tap.h"

#define SECOND INT64_C(1000000)
#define HOUR (3600 * SECOND)
#define NOON (INT64_C(800000000) * SECOND)	/* some moment */

static void
test_evidence(void)
{
	static const struct
	{
		OutboxOutcome outcome;
		int			status;
		OutboxEvidence evidence;
	}			cases[] = {
		{OUTBOX_DELIVERED, 200, OUTBOX_ALIVE},
		{OUTBOX_GONE, 410, OUTBOX_ALIVE},
		{OUTBOX_HTTP_4XX, 400, OUTBOX_ALIVE},
		{OUTBOX_HTTP_4XX, 404, OUTBOX_ALIVE},
		{OUTBOX_HTTP_4XX, 408, OUTBOX_FAILING},
		{OUTBOX_HTTP_4XX, 425, OUTBOX_FAILING},
		{OUTBOX_HTTP_4XX, 429, OUTBOX_FAILING},
		{OUTBOX_HTTP_3XX, 302, OUTBOX_FAILING},
		{OUTBOX_HTTP_5XX, 503, OUTBOX_FAILING},
		{OUTBOX_TIMEOUT, 0, OUTBOX_FAILING},
		{OUTBOX_DNS, 0, OUTBOX_FAILING},
		{OUTBOX_CONNECT, 0, OUTBOX_FAILING},
		{OUTBOX_TLS, 0, OUTBOX_FAILING},
		{OUTBOX_PROTOCOL, 0, OUTBOX_FAILING},
		{OUTBOX_BLOCKED, 0, OUTBOX_NO_EVIDENCE},
		{OUTBOX_BAD_REQUEST, 0, OUTBOX_NO_EVIDENCE},
		{OUTBOX_INTERNAL, 0, OUTBOX_NO_EVIDENCE},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		ok(outbox_evidence(cases[i].outcome, cases[i].status) == cases[i].evidence, "evidence of %s %d",
		   outbox_outcome_name(cases[i].outcome), cases[i].status);
}

/* A story told in steps: what ended when, and what the breaker is then. */
typedef struct Step
{
	const char *what;
	int64_t		at;				/* since NOON */
	bool		begin_probe;	/* a probe begins; nothing ended */
	OutboxEvidence evidence;
	bool		probe;
	int64_t		asked;
	bool		changed;
	OutboxBreakerState state;
	int64_t		probe_at;		/* since NOON */
} Step;

static void
tell(const char *story, OutboxBreaker *breaker, const OutboxBreakerPolicy *policy, const Step *steps, int n)
{
	for (int i = 0; i < n; i++)
	{
		const Step *step = &steps[i];
		bool		changed = false;

		if (step->begin_probe)
		{
			ok(outbox_breaker_lets(breaker, NOON + step->at) && !outbox_breaker_lets(breaker, NOON + step->at - 1), "%s: %s: it is due then, and not before", story, step->what);
			outbox_breaker_probe(breaker);
		}
		else
			changed = outbox_breaker_judge(breaker, policy, step->evidence, step->probe, NOON + step->at, step->asked, 0, 8);
		ok(changed == step->changed && breaker->state == step->state &&
		   (breaker->state == OUTBOX_BREAKER_CLOSED || breaker->probe_at == NOON + step->probe_at), "%s: %s", story, step->what);
		ok(breaker->state != OUTBOX_BREAKER_PROBING || !outbox_breaker_lets(breaker, NOON + 100 * HOUR), "%s: %s: one probe at a time", story, step->what);
	}
}

#define TELL(story, breaker, policy, ...) \
	do { \
		static const Step steps[] = {__VA_ARGS__}; \
		tell(story, breaker, policy, steps, sizeof(steps) / sizeof(steps[0])); \
	} while (0)

static void
test_breaker(void)
{
	static const OutboxBreakerPolicy policy = {.threshold = 3, .probe = 10 * SECOND, .max = 30 * SECOND};
	static const OutboxBreakerPolicy never = {.threshold = 0, .probe = 10 * SECOND, .max = 30 * SECOND};
	static const OutboxBreakerPolicy soon = {.threshold = 3, .probe = SECOND, .max = 30 * SECOND};
	OutboxBreaker breaker = {0};

	TELL("outage", &breaker, &policy,
		 {"one failure", 0, false, OUTBOX_FAILING, false, -1, false, OUTBOX_BREAKER_CLOSED, 0},
		 {"two", 1, false, OUTBOX_FAILING, false, -1, false, OUTBOX_BREAKER_CLOSED, 0},
		 {"a success between", 2, false, OUTBOX_ALIVE, false, -1, false, OUTBOX_BREAKER_CLOSED, 0},
		 {"counts anew", 3, false, OUTBOX_FAILING, false, -1, false, OUTBOX_BREAKER_CLOSED, 0},
		 {"what never got there does not count", 4, false, OUTBOX_NO_EVIDENCE, false, -1, false, OUTBOX_BREAKER_CLOSED, 0},
		 {"two again", 5, false, OUTBOX_FAILING, false, -1, false, OUTBOX_BREAKER_CLOSED, 0},
		 {"the third opens it", 6, false, OUTBOX_FAILING, false, -1, true, OUTBOX_BREAKER_OPEN, 10 * SECOND + 6},
		 {"a straggler fails", 7, false, OUTBOX_FAILING, false, -1, false, OUTBOX_BREAKER_OPEN, 10 * SECOND + 6},
		 {"probe", 10 * SECOND + 6, true, 0, false, 0, false, OUTBOX_BREAKER_PROBING, 10 * SECOND + 6},
		 {"a straggler fails meanwhile", 11 * SECOND, false, OUTBOX_FAILING, false, -1, false, OUTBOX_BREAKER_PROBING, 10 * SECOND + 6},
		 {"the probe fails", 12 * SECOND, false, OUTBOX_FAILING, true, -1, true, OUTBOX_BREAKER_OPEN, 32 * SECOND},
		 {"second probe", 32 * SECOND, true, 0, false, 0, false, OUTBOX_BREAKER_PROBING, 32 * SECOND},
		 {"fails: the wait is bounded", 33 * SECOND, false, OUTBOX_FAILING, true, -1, true, OUTBOX_BREAKER_OPEN, 63 * SECOND},
		 {"third probe", 63 * SECOND, true, 0, false, 0, false, OUTBOX_BREAKER_PROBING, 63 * SECOND},
		 {"never got there", 64 * SECOND, false, OUTBOX_NO_EVIDENCE, true, -1, true, OUTBOX_BREAKER_OPEN, 63 * SECOND},
		 {"fourth probe, at once", 63 * SECOND, true, 0, false, 0, false, OUTBOX_BREAKER_PROBING, 63 * SECOND},
		 {"is answered", 65 * SECOND, false, OUTBOX_ALIVE, true, -1, true, OUTBOX_BREAKER_CLOSED, 0});
	ok(outbox_breaker_width(&breaker, 8) == 1, "after an outage one request at a time");
	for (int i = 2; i < 8; i++)
	{
		outbox_breaker_judge(&breaker, &policy, OUTBOX_ALIVE, false, NOON, -1, 0, 8);
		ok(outbox_breaker_width(&breaker, 8) == i, "then %d", i);
	}
	outbox_breaker_judge(&breaker, &policy, OUTBOX_ALIVE, false, NOON, -1, 0, 8);
	ok(outbox_breaker_width(&breaker, 8) == 8 && outbox_breaker_width(&breaker, 1000) == 1000, "and then no limit of its own");

	TELL("a second outage", &breaker, &policy,
		 {"one failure", 0, false, OUTBOX_FAILING, false, -1, false, OUTBOX_BREAKER_CLOSED, 0},
		 {"two", 0, false, OUTBOX_FAILING, false, -1, false, OUTBOX_BREAKER_CLOSED, 0},
		 {"the third opens it, with the first wait", 0, false, OUTBOX_FAILING, false, -1, true, OUTBOX_BREAKER_OPEN, 10 * SECOND},
		 {"a straggler is answered", 1, false, OUTBOX_ALIVE, false, -1, true, OUTBOX_BREAKER_CLOSED, 0});

	breaker = (OutboxBreaker) {0};
	TELL("asked for a pause", &breaker, &policy,
		 {"one failure", 0, false, OUTBOX_FAILING, false, 60 * SECOND, false, OUTBOX_BREAKER_CLOSED, 0},
		 {"two", 0, false, OUTBOX_FAILING, false, 60 * SECOND, false, OUTBOX_BREAKER_CLOSED, 0},
		 {"the third opens it for so long", 0, false, OUTBOX_FAILING, false, 60 * SECOND, true, OUTBOX_BREAKER_OPEN, 60 * SECOND},
		 {"probe", 60 * SECOND, true, 0, false, 0, false, OUTBOX_BREAKER_PROBING, 60 * SECOND},
		 {"less than the back-off changes nothing", 60 * SECOND, false, OUTBOX_FAILING, true, SECOND, true, OUTBOX_BREAKER_OPEN, 80 * SECOND},
		 {"probe again", 80 * SECOND, true, 0, false, 0, false, OUTBOX_BREAKER_PROBING, 80 * SECOND},
		 {"a straggler is answered while a probe is on its way", 81 * SECOND, false, OUTBOX_ALIVE, false, -1, true, OUTBOX_BREAKER_CLOSED, 0},
		 {"the probe fails after that: like any other", 82 * SECOND, false, OUTBOX_FAILING, true, -1, false, OUTBOX_BREAKER_CLOSED, 0});

	breaker = (OutboxBreaker) {0};
	for (int i = 0; i < 1000; i++)
		outbox_breaker_judge(&breaker, &never, OUTBOX_FAILING, false, NOON, -1, 0, 8);
	ok(breaker.state == OUTBOX_BREAKER_CLOSED, "a threshold of 0 never opens");
	outbox_breaker_retime(&breaker, &soon, NOON);
	ok(breaker.state == OUTBOX_BREAKER_CLOSED, "another policy does not open a closed one");
	outbox_breaker_judge(&breaker, &policy, OUTBOX_FAILING, false, NOON, -1, 0, 8);
	ok(breaker.state == OUTBOX_BREAKER_OPEN && breaker.probe_at == NOON + 10 * SECOND, "a lower threshold holds from the next failure on");
	outbox_breaker_retime(&breaker, &soon, NOON + SECOND);
	ok(breaker.probe_at == NOON + 2 * SECOND, "a shorter back-off brings the probe forward");
	outbox_breaker_retime(&breaker, &policy, NOON + SECOND);
	ok(breaker.probe_at == NOON + 2 * SECOND, "a longer one does not put it off");

	breaker = (OutboxBreaker) {.failures = 2};
	outbox_breaker_judge(&breaker, &policy, OUTBOX_FAILING, false, NOON, -1, 0.999999, 8);
	ok(breaker.probe_at >= NOON + 8 * SECOND && breaker.probe_at < NOON + 8 * SECOND + SECOND / 100, "the dice bring a probe forward by up to a fifth");

	breaker = (OutboxBreaker) {.state = OUTBOX_BREAKER_PROBING, .probes = 1000000};
	outbox_breaker_judge(&breaker, &(OutboxBreakerPolicy) {.threshold = 1, .probe = 1, .max = 720 * HOUR}, OUTBOX_FAILING, true, NOON, -1, 0, 8);
	ok(breaker.probe_at == NOON + 720 * HOUR, "after very many probes it waits as long as it may, no longer");
}

/* Takes tokens as fast as they come until `until`; how many. */
static int
take_until(OutboxBucket *bucket, double rate, int64_t now, int64_t until)
{
	int			n = 0;

	for (;;)
	{
		int64_t		next = outbox_bucket_next(bucket, rate, now);

		if (next > until)
			return n;
		if (next > now && outbox_bucket_next(bucket, rate, next) != next)
			return -1;			/* promised, and not kept: a loop would spin */
		now = next;
		outbox_bucket_take(bucket, rate, now);
		n++;
	}
}

static void
test_bucket(void)
{
	static const double rates[] = {0.001, 0.1, 0.3, 0.999, 1, 1.5, 3, 7, 10, 33.3, 1000, 12345.678, 1000000};
	OutboxBucket bucket;

	for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++)
	{
		double		rate = rates[i];
		int			burst = rate < 1 ? 1 : (int) rate;
		int64_t		seconds = rate < 1 ? 10000 : rate > 1000 ? 5 : 100;
		int64_t		expected = (int64_t) (rate * (double) seconds);
		int			taken;

		bucket = (OutboxBucket) {0};
		ok(outbox_bucket_next(&bucket, rate, NOON) == NOON, "rate %g: the first at once", rate);
		taken = take_until(&bucket, rate, NOON, NOON);
		ok(taken == burst, "rate %g: a full bucket holds %d (%d)", rate, burst, taken);
		taken = take_until(&bucket, rate, NOON, NOON + seconds * SECOND);
		ok(taken >= expected - 1 - expected / 500 && taken <= expected, "rate %g: then %ld in %ld seconds (%d)", rate, (long) expected, (long) seconds, taken);
		ok(take_until(&bucket, rate, NOON + 100000 * SECOND, NOON + 100000 * SECOND) == burst, "rate %g: full again after a pause, and no fuller", rate);
	}

	bucket = (OutboxBucket) {0};
	outbox_bucket_take(&bucket, 0.001, NOON);
	ok(outbox_bucket_next(&bucket, 0.001, NOON) == NOON + 1000 * SECOND, "a thousandth: the next in a thousand seconds");
	ok(outbox_bucket_next(&bucket, 1, NOON) == NOON + SECOND, "a higher rate does not wait for what a lower one owed");
	ok(outbox_bucket_next(&bucket, 1, NOON - 100000 * SECOND) == NOON - 100000 * SECOND + SECOND, "nor does a clock that was set back");
}

static void
test_streak(void)
{
	OutboxStreak streak = {0};

	ok(!outbox_streak_lasts(&streak, SECOND, 0, NOON), "no failure, no streak");
	outbox_streak_add(&streak, OUTBOX_HTTP_5XX, NOON);
	ok(streak.since == NOON && streak.attempts == 1, "it begins when the first failure began");
	outbox_streak_add(&streak, OUTBOX_HTTP_4XX, NOON + SECOND);
	outbox_streak_add(&streak, OUTBOX_BLOCKED, NOON + SECOND);
	ok(streak.since == NOON && streak.attempts == 3, "whatever fails goes on with it");
	outbox_streak_add(&streak, OUTBOX_INTERNAL, NOON + SECOND);
	outbox_streak_add(&streak, OUTBOX_BAD_REQUEST, NOON + SECOND);
	ok(streak.attempts == 3, "but for what was not the endpoint's fault");
	ok(!outbox_streak_lasts(&streak, HOUR, 3, NOON + HOUR - 1), "not long enough");
	ok(outbox_streak_lasts(&streak, HOUR, 3, NOON + HOUR), "long enough");
	ok(!outbox_streak_lasts(&streak, HOUR, 4, NOON + HOUR), "too few attempts");
	ok(!outbox_streak_lasts(&streak, 0, 0, NOON + 100 * HOUR), "0 is never");
	outbox_streak_add(&streak, OUTBOX_DELIVERED, NOON + HOUR);
	ok(streak.since == 0 && streak.attempts == 0, "a success ends it");
}

int
main(void)
{
	test_evidence();
	test_breaker();
	test_bucket();
	test_streak();
	return done_testing();
}
