/*
 * What a payload must fulfil: the filter of a subscription.
 */
#ifndef OUTBOX_FILTER_H
#define OUTBOX_FILTER_H

#include "utils/jsonb.h"
#include "utils/jsonpath.h"

/*
 * Does the payload fulfil the filter?  A path that is a predicate must be true (the operator @@), any other one must find something (@?).  Errors count as no; only cancellation,
 * and memory that is not there, are raised.  Allocates in CurrentMemoryContext, which the caller resets.  With or without a transaction.
 */
extern PGDLLEXPORT bool outbox_filter_matches(JsonPath *filter, Jsonb *payload);

/* The jsonb that has this text, which was made from one; NULL if that fails.  Likewise. */
extern PGDLLEXPORT Jsonb *outbox_filter_payload(char *text);

#endif							/* OUTBOX_FILTER_H */
