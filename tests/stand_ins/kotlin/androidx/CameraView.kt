// Signatures of androidx.camera:camera-view 1.5.1 that the app uses.
package androidx.camera.view

import android.content.Context
import androidx.camera.core.ImageAnalysis
import androidx.lifecycle.LifecycleOwner
import java.util.concurrent.Executor

abstract class CameraController {
    fun setEnabledUseCases(enabled: Int) = Unit

    fun setImageAnalysisAnalyzer(executor: Executor, analyzer: ImageAnalysis.Analyzer) = Unit

    companion object {
        const val IMAGE_ANALYSIS = 2
    }
}

class LifecycleCameraController(context: Context) : CameraController() {
    fun bindToLifecycle(owner: LifecycleOwner) = Unit

    fun unbind() = Unit
}

class PreviewView(context: Context) : android.widget.FrameLayout(context) {
    enum class ScaleType { FIT_CENTER }

    var scaleType = ScaleType.FIT_CENTER
    var controller: CameraController? = null
}
