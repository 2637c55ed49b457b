/*
 * The ledger: what the worker writes down, and reads back when it starts.
 *
 * Outcomes are noted in memory as they happen and written in bulk by one short transaction.  What was noted stays noted until a transaction
 * with it has committed; a failed transaction is simply tried again.  No policy: what to write is decided elsewhere.
 */
#ifndef OUTBOX_LEDGER_H
#define OUTBOX_LEDGER_H

#include "subscription.h"
#include "tick.h"

typedef enum OutboxRowStatus
{
	OUTBOX_ROW_SENDING,
	OUTBOX_ROW_RETRYING,
	OUTBOX_ROW_BLOCKED,
	OUTBOX_ROW_LEASED,
	OUTBOX_ROW_DEAD
} OutboxRowStatus;

/* A delivery row as it should be.  Strings are copied. */
typedef struct OutboxRow
{
	int32		subscription;
	pg_uuid_t	event_id;
	pg_uuid_t	log_id;			/* its place in the log */
	OutboxRowStatus status;
	const char *key;			/* NULL: leave as it is */
	int			attempts;
	TimestampTz first_at;		/* 0: none yet */
	TimestampTz next_at;		/* 0: not waiting */
	int			status_code;	/* 0: none */
	const char *error;			/* NULL: none */
	const char *reason;			/* DEAD */
} OutboxRow;

/* An exception read back. */
typedef struct OutboxException
{
	int32		subscription;
	pg_uuid_t	event_id;
	pg_uuid_t	log_id;
	OutboxRowStatus status;
	bool		keyed;
	uint64		key_hash;
	int			attempts;
	TimestampTz first_at;
	TimestampTz next_at;
	bool		replay;			/* made, or last redriven, by a replay */
} OutboxException;

/* ---- noting, in memory ---- */

/* replay: on behalf of one.  same: the exchange is the one that was noted last, with another event in it. */
extern void outbox_ledger_attempt(int32 subscription, const pg_uuid_t *event_id, int attempt, TimestampTz at,
								  const OutboxExchange *exchange, bool replay, bool same);
extern void outbox_ledger_put(const OutboxRow *row, bool known);
extern void outbox_ledger_remove(int32 subscription, const pg_uuid_t *event_id);
extern void outbox_ledger_disable(int32 subscription, const char *reason);

/* As resume() does, if it is still disabled for this reason. */
extern void outbox_ledger_enable(int32 subscription, const char *reason);

/* Since when it has had nothing but failures; 0: no longer. */
extern void outbox_ledger_failing(int32 subscription, TimestampTz since);

/* How many notes wait to be written; how many of those are of rows that do not exist yet. */
extern int	outbox_ledger_pending(void);
extern int	outbox_ledger_new_rows(void);

/* Is the subscription noted to be disabled, but not yet? */
extern bool outbox_ledger_disabling(int32 subscription);

/* Does a note about this row wait, put off because somebody has locked it? */
extern bool outbox_ledger_noted(int32 subscription, const pg_uuid_t *event_id);

/* ---- writing, in a transaction with SPI connected ---- */

extern void outbox_ledger_write(const OutboxCatalog *catalog);

/* After that transaction: forget what it wrote (true: it disabled or enabled a subscription), or (failed) that it did. */
extern bool outbox_ledger_committed(void);
extern void outbox_ledger_failed(void);

/*
 * Earlier matching rules that the worker has not met yet apply to all that it matched without knowing better: to what this snapshot saw.  NULL: it has matched nothing since; they
 * apply to what they say.
 */
extern void outbox_ledger_meet_matches(int64 epoch, const OutboxSnapshot *matched);

/* ---- reading back, in a transaction with SPI connected ---- */

/* All exceptions, and the dead letters that hold back a key; ordered by subscription and place in the log. */
extern OutboxException *outbox_ledger_load_exceptions(int *n);

/* Which of these events have delivery rows, of whom. */
extern int	outbox_ledger_settled(const OutboxLoggedEvent *events, int n, OutboxSettled **settled);

#endif							/* OUTBOX_LEDGER_H */
