/*
 * When a subscription may send: its circuit breaker, its rate limit, and how long it has had nothing but failures.
 *
 * Pure: the clock and the dice are arguments, so a table tests it.  Times are microseconds; absolute ones since any fixed epoch, the same for all.
 */
#ifndef OUTBOX_BREAKER_H
#define OUTBOX_BREAKER_H

#include <stdbool.h>
#include <stdint.h>

#include "verdict.h"

/* What an outcome says about the endpoint, whatever it means for the event. */
typedef enum OutboxEvidence
{
	OUTBOX_NO_EVIDENCE,			/* the request never got there */
	OUTBOX_ALIVE,				/* delivered, or refused for what is in it */
	OUTBOX_FAILING				/* what any event would have met with */
} OutboxEvidence;

extern OutboxEvidence outbox_evidence(OutboxOutcome outcome, int status);

/* ---- circuit breaker ---- */

typedef enum OutboxBreakerState
{
	OUTBOX_BREAKER_CLOSED,		/* → OPEN */
	OUTBOX_BREAKER_OPEN,		/* until a probe is due → PROBING, CLOSED */
	OUTBOX_BREAKER_PROBING		/* one request is on its way → OPEN, CLOSED */
} OutboxBreakerState;

typedef struct OutboxBreakerPolicy
{
	int			threshold;		/* failures in a row that open it; 0: it never opens */
	int64_t		probe;			/* from opening to the first probe; doubles with each that fails … */
	int64_t		max;			/* … up to this */
} OutboxBreakerPolicy;

/* All zeros is a closed one. */
typedef struct OutboxBreaker
{
	OutboxBreakerState state;
	int			failures;		/* in a row, while closed */
	int			probes;			/* failed, since it opened */
	int			width;			/* requests at a time after it closed, growing with each answer; 0: no limit of its own */
	int64_t		probe_at;		/* OPEN, PROBING: when the next probe is, or was, due */
} OutboxBreaker;

/* May a request begin? */
extern bool outbox_breaker_lets(const OutboxBreaker *breaker, int64_t now);

/* How many may be in flight, of so many that are permitted otherwise. */
extern int	outbox_breaker_width(const OutboxBreaker *breaker, int max_in_flight);

/* The request that begins now is the probe. */
extern void outbox_breaker_probe(OutboxBreaker *breaker);

/*
 * A request ended.  probe: it was the probe.  asked: microseconds for which the receiver asked to be left alone, -1: it did not.  dice: uniform in
 * [0,1): probes come up to a fifth earlier than planned, so that those of many subscriptions spread.  True: the state has changed.
 */
extern bool outbox_breaker_judge(OutboxBreaker *breaker, const OutboxBreakerPolicy *policy, OutboxEvidence evidence, bool probe,
								 int64_t now, int64_t asked, double dice, int max_in_flight);

/* The policy has changed: no probe is further away than it would be had the breaker opened now. */
extern void outbox_breaker_retime(OutboxBreaker *breaker, const OutboxBreakerPolicy *policy, int64_t now);

/* ---- rate limit ---- */

/*
 * A token bucket, kept as the time at which it would be full again but for what is taken from now on (the generic cell rate algorithm): nothing has to be
 * refilled.  It holds one second's worth of tokens, at least one.  All zeros is a full one.
 */
typedef struct OutboxBucket
{
	int64_t		full_at;		/* nanoseconds */
} OutboxBucket;

/* When the next token can be taken: now, or later. rate: tokens per second, positive. */
extern int64_t outbox_bucket_next(OutboxBucket *bucket, double rate, int64_t now);
extern void outbox_bucket_take(OutboxBucket *bucket, double rate, int64_t now);

/* ---- nothing but failures ---- */

/* All zeros: the last attempt was a success, or there was none. */
typedef struct OutboxStreak
{
	int64_t		since;			/* when the first of the failures began; 0: none */
	int			attempts;		/* that failed, as far as this process knows */
} OutboxStreak;

extern void outbox_streak_add(OutboxStreak *streak, OutboxOutcome outcome, int64_t started_at);

/* Has it lasted `length` (0: that is never enough), over so many attempts at least? */
extern bool outbox_streak_lasts(const OutboxStreak *streak, int64_t length, int attempts, int64_t now);

#endif							/* OUTBOX_BREAKER_H */
