/*
 * When a subscription may send.
 *
 * The breaker judges the endpoint, where verdict judges the event.  What would have happened to any event counts as the endpoint's failure: no answer, 5xx, a redirect, and the three of 4xx
 * that ask for another time.  Any other 4xx is an answer about this event: an endpoint that refuses one event must not be closed to the rest, so it counts as alive. (An endpoint that
 * refuses everything has no success either: disable_after ends that.)
 *
 * Nothing here reads a clock or throws dice, and sums of times are small against their type: delays are bounded by the policy's checks (30 days).
 */
#include "breaker.h"

#include <stddef.h>

#define NS INT64_C(1000)				/* nanoseconds in a microsecond */
#define SECOND_NS INT64_C(1000000000)
#define SPREAD 0.2						/* part of a delay by which a probe may come early */

OutboxEvidence
outbox_evidence(OutboxOutcome outcome, int status)
{
	switch (outcome)
	{
		case OUTBOX_DELIVERED:
		case OUTBOX_GONE:
			return OUTBOX_ALIVE;
		case OUTBOX_HTTP_4XX:
			return status == 408 || status == 425 || status == 429 ? OUTBOX_FAILING : OUTBOX_ALIVE;
		case OUTBOX_HTTP_3XX:
		case OUTBOX_HTTP_5XX:
		case OUTBOX_TIMEOUT:
		case OUTBOX_DNS:
		case OUTBOX_CONNECT:
		case OUTBOX_TLS:
		case OUTBOX_PROTOCOL:
			return OUTBOX_FAILING;
		case OUTBOX_BLOCKED:
		case OUTBOX_BAD_REQUEST:
		case OUTBOX_INTERNAL:
		case OUTBOX_NACK:		/* of a lease, which has no endpoint */
		case OUTBOX_LEASE_EXPIRED:
			break;
	}
	return OUTBOX_NO_EVIDENCE;
}

/* ---- circuit breaker ---- */

bool
outbox_breaker_lets(const OutboxBreaker *breaker, int64_t now)
{
	return breaker->state == OUTBOX_BREAKER_CLOSED ||
		(breaker->state == OUTBOX_BREAKER_OPEN && now >= breaker->probe_at);
}

int
outbox_breaker_width(const OutboxBreaker *breaker, int max_in_flight)
{
	return breaker->width > 0 && breaker->width < max_in_flight ? breaker->width : max_in_flight;
}

void
outbox_breaker_probe(OutboxBreaker *breaker)
{
	breaker->state = OUTBOX_BREAKER_PROBING;
}

static void
open_breaker(OutboxBreaker *breaker, const OutboxBreakerPolicy *policy, int64_t now, int64_t asked, double dice)
{
	int64_t		wait = policy->probe;

	for (int i = 0; i < breaker->probes && wait < policy->max; i++)
		wait *= 2;
	if (wait > policy->max)
		wait = policy->max;
	wait -= (int64_t) ((double) wait * SPREAD * dice);
	breaker->state = OUTBOX_BREAKER_OPEN;
	breaker->width = 0;
	breaker->probe_at = now + (asked > wait ? asked : wait);
}

/* Alive.  After an outage it starts gently: one request at a time, one more with each answer. */
static bool
close_breaker(OutboxBreaker *breaker, int max_in_flight)
{
	bool		was_open = breaker->state != OUTBOX_BREAKER_CLOSED;

	breaker->state = OUTBOX_BREAKER_CLOSED;
	breaker->failures = breaker->probes = 0;
	breaker->probe_at = 0;
	if (was_open)
		breaker->width = 1;
	else if (breaker->width > 0 && ++breaker->width >= max_in_flight)
		breaker->width = 0;
	return was_open;
}

bool
outbox_breaker_judge(OutboxBreaker *breaker, const OutboxBreakerPolicy *policy, OutboxEvidence evidence, bool probe,
					 int64_t now, int64_t asked, double dice, int max_in_flight)
{
	if (evidence == OUTBOX_ALIVE)
		return close_breaker(breaker, max_in_flight);
	switch (breaker->state)
	{
		case OUTBOX_BREAKER_CLOSED:
			if (evidence == OUTBOX_NO_EVIDENCE || ++breaker->failures < policy->threshold || policy->threshold == 0)
				return false;
			open_breaker(breaker, policy, now, asked, dice);
			return true;
		case OUTBOX_BREAKER_PROBING:
			if (!probe)
				return false;
			if (evidence == OUTBOX_NO_EVIDENCE)
			{
				breaker->state = OUTBOX_BREAKER_OPEN;	/* the next event is the probe, at once */
				return true;
			}
			breaker->probes++;
			open_breaker(breaker, policy, now, asked, dice);
			return true;
		case OUTBOX_BREAKER_OPEN:
			break;				/* it began before the breaker opened, and tells nothing new */
	}
	return false;
}

void
outbox_breaker_retime(OutboxBreaker *breaker, const OutboxBreakerPolicy *policy, int64_t now)
{
	if (breaker->state == OUTBOX_BREAKER_CLOSED)
		return;
	breaker->probes = 0;
	if (breaker->probe_at > now + policy->probe)
		breaker->probe_at = now + policy->probe;
}

/* ---- rate limit ---- */

/* From one token to the next, rounded up, and from the first to the last of a full bucket. */
static void
bucket_times(double rate, int64_t *interval, int64_t *span)
{
	double		step = (double) SECOND_NS / rate;

	*interval = (int64_t) step + ((double) (int64_t) step < step);
	*span = rate < 1 ? 0 : ((int64_t) rate - 1) * *interval;
}

int64_t
outbox_bucket_next(OutboxBucket *bucket, double rate, int64_t now)
{
	int64_t		interval;
	int64_t		span;
	int64_t		next;

	bucket_times(rate, &interval, &span);

	/* never emptier than empty: after the rate was raised, or the clock was set back */
	if (bucket->full_at > now * NS + span + interval)
		bucket->full_at = now * NS + span + interval;
	next = bucket->full_at - span;
	return next <= now * NS ? now : next / NS + (next % NS > 0);
}

void
outbox_bucket_take(OutboxBucket *bucket, double rate, int64_t now)
{
	int64_t		interval;
	int64_t		span;

	bucket_times(rate, &interval, &span);
	bucket->full_at = (bucket->full_at > now * NS ? bucket->full_at : now * NS) + interval;
}

/* ---- nothing but failures ---- */

void
outbox_streak_add(OutboxStreak *streak, OutboxOutcome outcome, int64_t started_at)
{
	if (outcome == OUTBOX_DELIVERED)
		*streak = (OutboxStreak) {0};
	else if (outcome != OUTBOX_BAD_REQUEST && outcome != OUTBOX_INTERNAL)	/* those are the event's fault, or ours */
	{
		if (streak->since == 0)
			streak->since = started_at;
		streak->attempts++;
	}
}

bool
outbox_streak_lasts(const OutboxStreak *streak, int64_t length, int attempts, int64_t now)
{
	return length > 0 && streak->since != 0 && streak->attempts >= attempts && now - streak->since >= length;
}
