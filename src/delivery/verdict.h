/*
 * What an attempt's outcome means: delivered, try again at some time, dead, or the endpoint is gone.
 *
 * Pure: the clock and the dice are arguments, so a table tests it.
 */
#ifndef OUTBOX_VERDICT_H
#define OUTBOX_VERDICT_H

#include <stdbool.h>
#include <stdint.h>

/* How an HTTP exchange ended; also the vocabulary of attempt.outcome (outbox_outcome_name). */
typedef enum OutboxOutcome
{
	OUTBOX_DELIVERED,			/* 2xx */
	OUTBOX_HTTP_3XX,			/* never followed */
	OUTBOX_HTTP_4XX,
	OUTBOX_HTTP_5XX,
	OUTBOX_GONE,				/* 410 */
	OUTBOX_TIMEOUT,
	OUTBOX_DNS,
	OUTBOX_CONNECT,				/* refused, unreachable, reset */
	OUTBOX_TLS,
	OUTBOX_PROTOCOL,			/* not HTTP, or beyond the bounds on headers */
	OUTBOX_BLOCKED,				/* the network policy refused the address, port or scheme */
	OUTBOX_BAD_REQUEST,			/* the request cannot be formed (URL, header) */
	OUTBOX_INTERNAL,			/* our own fault: out of memory, unreadable event */
	OUTBOX_NACK,				/* pull: the consumer refused it */
	OUTBOX_LEASE_EXPIRED		/* pull: nobody said anything in time */
} OutboxOutcome;

extern const char *outbox_outcome_name(OutboxOutcome outcome);	/* "delivered", "http_3xx", … "timeout", "internal" */

/* Times are microseconds; absolute ones since any fixed epoch, the same for all. */
typedef struct OutboxRetryPolicy
{
	int64_t		base;			/* delay before the second attempt */
	double		factor;			/* growth per attempt */
	int64_t		max;			/* longest delay, and bound of Retry-After */
	double		jitter;			/* 0 … 1: each delay is spread by ± this part */
	int			max_attempts;
	int64_t		give_up_after;	/* since the first attempt; no attempt begins then or later; 0: never */
	const int  *fatal_statuses;
	int			n_fatal_statuses;
} OutboxRetryPolicy;

typedef enum OutboxDecision
{
	OUTBOX_DONE,				/* delivered */
	OUTBOX_RETRY,				/* again at `at` */
	OUTBOX_DEAD,				/* a dead letter, for `reason` */
	OUTBOX_DISABLE				/* 410: the subscription is disabled; this event is kept and costs no attempt */
} OutboxDecision;

typedef struct OutboxVerdict
{
	OutboxDecision decision;
	int64_t		at;				/* RETRY: when */
	const char *reason;			/* DEAD: max_attempts | give_up_after | fatal_status | blocked_address | bad_request | internal */
} OutboxVerdict;

/*
 * attempts: made so far, this one included.  first_at: when the first began.  retry_after: microseconds the receiver asked for, -1: it did not (a
 * longer wait than the computed one is honoured up to policy->max).  dice: uniform in [0,1).
 */
extern OutboxVerdict outbox_verdict(OutboxOutcome outcome, int status, int attempts, int64_t first_at, int64_t now,
									int64_t retry_after, double dice, const OutboxRetryPolicy *policy);

/*
 * A Retry-After field (RFC 9110 §10.2.3: delta-seconds, or an HTTP-date in any of its three forms) as microseconds from `now_unix` (seconds);
 * -1 if absent, negative, or not understood; never overflows.
 */
extern int64_t outbox_retry_after(const char *value, int64_t now_unix);

#endif							/* OUTBOX_VERDICT_H */
