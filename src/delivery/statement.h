/*
 * SQL statements: constant texts, prepared when first run and kept.
 */
#ifndef OUTBOX_STATEMENT_H
#define OUTBOX_STATEMENT_H

#include "executor/spi.h"

#define OUTBOX_PARAMETERS 12

typedef struct OutboxStatement
{
	const char *text;
	int			n;				/* of parameters */
	Oid			types[OUTBOX_PARAMETERS];
	SPIPlanPtr	plan;			/* NULL until first run */
} OutboxStatement;

/* Runs it, with SPI connected; nulls as for SPI_execute_plan.  The result is in SPI_processed and SPI_tuptable. */
extern void outbox_statement_run(OutboxStatement *statement, Datum *values, const char *nulls);

/* A column of the result; rows count from 0, columns from 1. */
extern Datum outbox_statement_column(uint64 row, int number, bool *null);
extern int64 outbox_statement_int8(uint64 row, int number, bool *null);

#endif							/* OUTBOX_STATEMENT_H */
