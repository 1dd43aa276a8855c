package org.lightningprune

import android.os.Debug
import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Random
import org.lightningprune.logic.FileEntry
import org.lightningprune.logic.LoadedProgram
import org.lightningprune.logic.Manifest
import org.lightningprune.logic.ModelException
import org.lightningprune.logic.ProbePlan
import org.lightningprune.logic.ProbeProgram
import org.lightningprune.logic.ProbeResults
import org.lightningprune.logic.ProbeRun
import org.lightningprune.logic.TensorSpec
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** Times what lightning_prune's export_probe wrote. Not for the screen's thread: it takes minutes. */
object ProbeRunner {
    /**
     * Run the plan in a folder of the phone. On one thread the clock is the processor time of that thread, which this
     * call must stay on, otherwise the wall's.
     *
     * Throws [ModelException] where the plan or a file is not what was exported.
     */
    fun run(folder: File, device: String, progress: (Long, Long) -> Unit = { _, _ -> }): ProbeResults {
        val plan = try {
            ProbePlan.parse(File(folder, "plan.json").readBytes())
        } catch (error: IOException) {
            throw ModelException("$folder has no plan.json: push the folder of export_probe there (${error.message})")
        }
        for ((name, sha256) in plan.files) checked(File(folder, name), sha256)
        val isThread = plan.threads == 1
        val clock: () -> Long = if (isThread) Debug::threadCpuTimeNanos else System::nanoTime
        if (clock() < 0) throw ModelException("this phone has no clock of a thread: export the probe with threads=2")
        val pool = Pool(plan)
        return ProbeRun(plan, ProbeRun.tick(clock), clock).results(
            device, plan.threads, if (isThread) "thread" else "wall", progress
        ) { program -> Loaded(File(folder, program.file), plan.threads, program, pool) }
    }

    private fun checked(file: File, sha256: String) = try {
        file.inputStream().use { Manifest.checkFile(FileEntry(file.name, sha256, file.length()), it) }
    } catch (error: IOException) {
        throw ModelException("${file.name} cannot be read: push the whole folder again (${error.message})")
    }

    /**
     * A module for each program, even where two are the same method: alike layers of a network have weights of their own,
     * and the second must not find those of the first in a cache. All have as many threads, so that loading one does not
     * replace the threads of another (ExecuTorch 1.4.1 does so where the number differs).
     */
    private class Loaded(file: File, threads: Int, private val program: ProbeProgram, pool: Pool) : LoadedProgram {
        private val inputs = ProgramRunner.telling("${program.name} cannot be run") {
            program.inputs.map { EValue.from(pool.tensor(it)) }.toTypedArray()
        }
        private val module = ProgramRunner.telling("${file.name} cannot be loaded") {
            Module.load(file.path, Module.LOAD_MODE_MMAP, threads)
        }

        override fun run() {
            ProgramRunner.telling("${program.name} cannot be run") { module.execute(program.method, *inputs) }
        }

        override fun close() = module.close()
    }

    /**
     * What programs take, all of it in one place for each type: inside of a network a layer takes what was just written.
     * Floats are random, the same each time; whole numbers are zeros. The layout of random numbers does not matter.
     */
    private class Pool(plan: ProbePlan) {
        private val inputs = plan.programs.flatMap { it.inputs }
        private val floats = direct("float32", 4).asFloatBuffer()
        private val longs = direct("int64", 8).asLongBuffer()
        private val bytes = direct("uint8", 1)

        init {
            val random = Random(0)
            for (place in 0 until floats.capacity()) floats.put(place, random.nextGaussian().toFloat())
        }

        fun tensor(spec: TensorSpec): Tensor {
            val sizes = LongArray(spec.shape.size) { spec.shape[it].toLong() }
            // a tensor takes all of a buffer
            return when (spec.dtype) {
                "float32" -> Tensor.fromBlob(floats.duplicate().apply { limit(spec.count) }.slice(), sizes)
                "int64" -> Tensor.fromBlob(longs.duplicate().apply { limit(spec.count) }.slice(), sizes)
                "uint8" -> {
                    val own = bytes.duplicate().apply { limit(spec.count) }.slice()
                    Tensor.fromBlobUnsigned(own.order(ByteOrder.nativeOrder()), sizes)
                }
                else -> throw ModelException("input $spec: this runner makes float32, uint8 and int64")
            }
        }

        private fun direct(dtype: String, width: Int): ByteBuffer {
            val size = width * (inputs.filter { it.dtype == dtype }.maxOfOrNull { it.count } ?: 0).toLong()
            if (size > Int.MAX_VALUE) throw ModelException("a program of the plan takes $size bytes of $dtype")
            return try {
                ByteBuffer.allocateDirect(size.toInt()).order(ByteOrder.nativeOrder())
            } catch (error: OutOfMemoryError) {
                throw ModelException("a program of the plan takes $size bytes of $dtype, and the app has no such memory")
            }
        }
    }
}
