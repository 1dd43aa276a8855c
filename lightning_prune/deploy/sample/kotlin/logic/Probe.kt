package org.lightningprune.logic

import java.io.Closeable

/** A method of a file that is to be timed. */
data class ProbeProgram(val name: String, val file: String, val method: String, val inputs: List<TensorSpec>)

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
    /** How often a program's turn comes, all in all. */
    val turns: Int get() = passes * rounds * programs.size

    companion object {
        const val FORMAT = "lightning_prune.probe_plan"
        const val VERSION = 1L
        private const val MOST = 1 shl 20

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
                ProbeProgram(program.text("name"), program.text("file"), program.text("method"), inputs)
            }
            for (file in files.keys + programs.map { it.file }) {
                if (file !in files || '/' in file || '\\' in file) {
                    throw ModelException("the plan names a file \"$file\" that cannot be beside it")
                }
            }
            return ProbePlan(
                Manifest.sha256(bytes), fields.text("name"), fields.within("threads", 0..MOST),
                fields.within("passes", 1..MOST), fields.within("rounds", 1..MOST), files, programs
            )
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

/** A file of a probe in the memory of the phone. */
interface ProbeFile : Closeable {
    /** Run a program of it. Throws [ModelException] where it cannot be run. */
    fun run(program: ProbeProgram)
}

/**
 * Runs a plan in interleaved rounds: in each pass every file is loaded, its programs take turns, beginning one further
 * in each round, and it is let go. Of two runs in a row the second counts; a short one is repeated until it takes twenty
 * ticks of the clock. A program that fails has no times.
 */
class ProbeRun(private val plan: ProbePlan, private val tick: Long, private val clock: () -> Long) {
    private val nanoseconds = LinkedHashMap<String, ArrayList<Long>>()
    private val failed = LinkedHashMap<String, String>()

    /** [progress] is told how many turns were taken. */
    fun results(
        device: String,
        threads: Int,
        clockName: String,
        progress: (Int) -> Unit = {},
        load: (String) -> ProbeFile
    ): ProbeResults {
        var turns = 0
        repeat(plan.passes) {
            for (name in plan.programs.map { it.file }.distinct()) {
                load(name).use { file ->
                    val repeats = started(file, plan.programs.filter { it.file == name && it.name !in failed })
                    val order = repeats.keys.toList()
                    for (round in 0 until plan.rounds) {
                        for (place in order.indices) turn(file, order[(round + place) % order.size], repeats)
                        turns += order.size
                        progress(turns)
                    }
                }
            }
        }
        return ProbeResults(plan.digest, device, threads, clockName, tick, nanoseconds - failed.keys, failed)
    }

    /** How often each program that can be run is repeated in its turn. */
    private fun started(file: ProbeFile, programs: List<ProbeProgram>): Map<ProbeProgram, Long> {
        val repeats = LinkedHashMap<ProbeProgram, Long>()
        for (program in programs) {
            try {
                file.run(program)
                val start = clock()
                file.run(program)
                val taken = maxOf(1L, clock() - start)
                repeats[program] = (20 * tick + taken - 1) / taken
            } catch (error: ModelException) {
                failed[program.name] = error.message ?: "it fails"
            }
        }
        return repeats
    }

    private fun turn(file: ProbeFile, program: ProbeProgram, repeats: Map<ProbeProgram, Long>) {
        val count = repeats.getValue(program)
        file.run(program)
        val start = clock()
        for (number in 0 until count) file.run(program)
        nanoseconds.getOrPut(program.name) { ArrayList() }.add(maxOf(1L, (clock() - start) / count))
    }

    companion object {
        /** Nanoseconds between two ticks of a clock that goes on while this waits for it. */
        fun tick(clock: () -> Long): Long = (1..5).minOf {
            val first = clock()
            var last = first
            while (last == first) last = clock()
            last - first
        }
    }
}
