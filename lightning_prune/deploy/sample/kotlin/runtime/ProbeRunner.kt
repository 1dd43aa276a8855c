package org.lightningprune

import android.os.Debug
import java.io.File
import java.io.IOException
import java.util.Random
import org.lightningprune.logic.FileEntry
import org.lightningprune.logic.Manifest
import org.lightningprune.logic.ModelException
import org.lightningprune.logic.ProbeFile
import org.lightningprune.logic.ProbePlan
import org.lightningprune.logic.ProbeProgram
import org.lightningprune.logic.ProbeResults
import org.lightningprune.logic.ProbeRun
import org.lightningprune.logic.TensorSpec
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module

/** Times what lightning_prune's export_probe wrote. Not for the screen's thread: it takes minutes. */
object ProbeRunner {
    /**
     * Run the plan in a folder of the phone. On one thread the clock is the processor time of that thread, which this
     * call must stay on, otherwise the wall's.
     *
     * Throws [ModelException] where the plan or a file is not what was exported.
     */
    fun run(folder: File, device: String, progress: (Int, Int) -> Unit = { _, _ -> }): ProbeResults {
        val plan = try {
            ProbePlan.parse(File(folder, "plan.json").readBytes())
        } catch (error: IOException) {
            throw ModelException("$folder has no plan.json: push the folder of export_probe there (${error.message})")
        }
        for ((name, sha256) in plan.files) checked(File(folder, name), sha256)
        val isThread = plan.threads == 1
        val clock: () -> Long = if (isThread) Debug::threadCpuTimeNanos else System::nanoTime
        if (clock() < 0) throw ModelException("this phone has no clock of a thread: export the probe with threads=2")
        return ProbeRun(plan, ProbeRun.tick(clock), clock).results(
            device, plan.threads, if (isThread) "thread" else "wall", { progress(it, plan.turns) }
        ) { name -> Loaded(File(folder, name), plan.threads) }
    }

    private fun checked(file: File, sha256: String) = try {
        file.inputStream().use { Manifest.checkFile(FileEntry(file.name, sha256, file.length()), it) }
    } catch (error: IOException) {
        throw ModelException("${file.name} cannot be read: push the whole folder again (${error.message})")
    }

    private class Loaded(file: File, threads: Int) : ProbeFile {
        private val module = ProgramRunner.telling("${file.name} cannot be loaded") {
            Module.load(file.path, Module.LOAD_MODE_MMAP, threads)
        }
        private val inputs = HashMap<String, Array<EValue>>()

        override fun run(program: ProbeProgram) {
            ProgramRunner.telling("${program.name} cannot be run") {
                val values = inputs.getOrPut(program.name) {
                    module.loadMethod(program.method)
                    program.inputs.map { EValue.from(ProgramRunner.tensor(it, drawn(it), it.shape)) }.toTypedArray()
                }
                module.execute(program.method, *values)
            }
        }

        override fun close() = module.close()

        /** Floats at random, the same each time; whole numbers are zeros. The layout of random numbers does not matter. */
        private fun drawn(spec: TensorSpec): FloatArray {
            val random = Random(0)
            return FloatArray(spec.count) { if (spec.dtype == "float32") random.nextGaussian().toFloat() else 0f }
        }
    }
}
