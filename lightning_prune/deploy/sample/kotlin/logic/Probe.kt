package org.lightningprune.logic

import java.io.Closeable

/** A method of a file that is to be timed in the turn of this number. */
data class ProbeProgram(
    val name: String,
    val turn: Int,
    val file: String,
    val method: String,
    val inputs: List<TensorSpec>
)

/**
 * What a phone is to time: the plan.json that lightning_prune's export_probe wrote. What follows from the times is worked
 * out in Python, so that the rest of the plan is not read here.
 *
 * [digest] is the sha256 of the plan's bytes, by which results name it; [files] name -> sha256.
 */
data class ProbePlan(
    val digest: String,
    val name: String,
    val threads: Int,
    val passes: Int,
    val rounds: Int,
    val files: Map<String, String>,
    val programs: List<ProbeProgram>
) {
    /** The programs of each turn, in the order of the first of each. */
    val turns: List<List<ProbeProgram>> get() = programs.groupBy { it.turn }.values.toList()

    companion object {
        const val FORMAT = "lightning_prune.probe_plan"
        const val VERSION = 1L
        private const val WHOLE = "whole"
        private const val MOST = 1_000_000

        /** Read the bytes of a plan.json. Throws [ModelException] where it is malformed or newer. */
        fun parse(bytes: ByteArray): ProbePlan {
            val fields = Fields(Json.parse(String(bytes, Charsets.UTF_8)), "the plan")
            if (fields.text("format") != FORMAT) throw ModelException("this is no plan of a probe: copy the folder again")
            val version = fields.whole("version")
            if (version != VERSION) {
                throw ModelException("the plan is of version $version, and this app reads $VERSION: update the app")
            }
            val files = fields.inner("files").texts()
            val programs = fields.list("programs").map { program ->
                val inputs = program.list("inputs").map { TensorSpec("input", it.sizes("shape"), it.text("dtype")) }
                ProbeProgram(
                    program.text("name"), program.within("turn", 0..MOST), program.text("file"), program.text("method"),
                    inputs
                )
            }
            for (file in files.keys + programs.map { it.file }) {
                if (file !in files || '/' in file || '\\' in file) {
                    throw ModelException("the plan names a file \"$file\" that cannot be beside it")
                }
            }
            if (programs.distinctBy { it.name }.size < programs.size) {
                throw ModelException("two programs of the plan have one name")
            }
            val wholes = fields.list("programs").count { it.text("cell") == WHOLE }
            val anchors = fields.count("anchors")
            if (wholes != anchors || wholes < 2) {
                throw ModelException("the plan has $wholes whole programs, two at least, and the widths of $anchors")
            }
            val plan = ProbePlan(
                Manifest.sha256(bytes), fields.text("name"), fields.within("threads", 0..MOST),
                fields.within("passes", 1..MOST), fields.within("rounds", 1..MOST), files, programs
            )
            if (plan.passes.toLong() * plan.rounds > MOST) {
                throw ModelException("${plan.passes} passes of ${plan.rounds} rounds are more than $MOST rounds")
            }
            return plan
        }
    }
}

/** What a phone found; [toJson] is read by lightning_prune's ProbeResults. */
data class ProbeResults(
    val plan: String,
    val device: String,
    val threads: Int,
    val clock: String,
    val tick: Long,
    val nanoseconds: Map<String, List<Long>>,
    val failed: Map<String, String>
) {
    fun toJson(): String = Json.text(
        linkedMapOf(
            "format" to FORMAT, "version" to 1L, "plan" to plan, "device" to device, "runtime" to "",
            "threads" to threads.toLong(), "clock" to clock, "tick" to tick, "nanoseconds" to nanoseconds,
            "failed" to failed
        )
    )

    companion object {
        const val FORMAT = "lightning_prune.probe_results"
    }
}

/** A program of a probe in the memory of the phone, with weights of its own. */
interface LoadedProgram : Closeable {
    /** Run it once. Throws [ModelException] where it cannot be run. */
    fun run()
}

/**
 * Runs a plan: in each pass the programs of each turn are loaded, run in their order, and let go. In each round a turn is
 * run eight times until its time settles, and four times that count, as in lightning_prune's worker; in a turn a short
 * program is repeated until it takes twenty ticks of the clock. A program that cannot be loaded or run has no times.
 */
class ProbeRun(private val plan: ProbePlan, private val tick: Long, private val clock: () -> Long) {
    private val nanoseconds = LinkedHashMap<String, ArrayList<Long>>()
    private val failed = LinkedHashMap<String, String>()

    /** [progress] is told how many turns are over, of how many in all passes. */
    fun results(
        device: String,
        threads: Int,
        clockName: String,
        progress: (Long, Long) -> Unit = { _, _ -> },
        load: (ProbeProgram) -> LoadedProgram
    ): ProbeResults {
        val turns = plan.turns
        for (pass in 0 until plan.passes) {
            for ((place, turn) in turns.withIndex()) {
                val loaded = ArrayList<LoadedProgram>()
                try {
                    measure(started(turn, loaded, load))
                } finally {
                    for (program in loaded) program.close()
                }
                progress(pass.toLong() * turns.size + place + 1, plan.passes.toLong() * turns.size)
            }
        }
        return ProbeResults(plan.digest, device, threads, clockName, tick, nanoseconds - failed.keys, failed)
    }

    /** Load what did not fail and run it once; return what can be run, by its name. */
    private fun started(
        turn: List<ProbeProgram>,
        loaded: MutableList<LoadedProgram>,
        load: (ProbeProgram) -> LoadedProgram
    ): Map<String, LoadedProgram> {
        val running = LinkedHashMap<String, LoadedProgram>()
        for (program in turn) {
            if (program.name in failed) continue
            try {
                val own = load(program)
                loaded.add(own)
                own.run()
                running[program.name] = own
            } catch (error: ModelException) {
                failed[program.name] = error.message ?: "it fails"
            }
        }
        return running
    }

    private fun measure(running: Map<String, LoadedProgram>) {
        val counts = running.mapValues { (_, program) ->
            val start = clock()
            program.run()
            val taken = maxOf(1L, clock() - start)
            (20 * tick + taken - 1) / taken
        }
        repeat(plan.rounds) {
            for (again in 0 until SETTLING + MEASURED) {
                for ((name, program) in running) {
                    val count = counts.getValue(name)
                    val start = clock()
                    for (number in 0 until count) program.run()
                    val taken = maxOf(1L, (clock() - start) / count)
                    if (again >= SETTLING) nanoseconds.getOrPut(name) { ArrayList() }.add(taken)
                }
            }
        }
    }

    companion object {
        private const val SETTLING = 8
        private const val MEASURED = 4

        /** Nanoseconds between two ticks of a clock that goes on while this waits for it. */
        fun tick(clock: () -> Long): Long = (1..5).minOf {
            val first = clock()
            var last = first
            while (last == first) last = clock()
            last - first
        }
    }
}
