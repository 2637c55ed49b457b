/*
 * SQL statements of the worker.
 *
 * Never assembled at run time: a statement is a constant, and its plan lives as long as the worker.
 */
#include "postgres.h"

#include "statement.h"

void
outbox_statement_run(OutboxStatement *statement, Datum *values, const char *nulls)
{
	int			result;

	if (statement->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(statement->text, statement->n, statement->types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare: %s", statement->text);
		statement->plan = plan;
	}
	result = SPI_execute_plan(statement->plan, values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "SPI failed with %s: %s", SPI_result_code_string(result), statement->text);
}

Datum
outbox_statement_column(uint64 row, int number, bool *null)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number, null);
}

int64
outbox_statement_int8(uint64 row, int number, bool *null)
{
	return DatumGetInt64(outbox_statement_column(row, number, null));
}
